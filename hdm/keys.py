"""Keys: what every table, tar and file of latents calls a picture, and what they are joined by.

A key is made once, by the download. It is text in tables and names, and a number where millions of
them are joined.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import NewType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DIGITS = 16
"""Lower-case hex digits of a key."""
FIELD = pa.field("key", pa.string(), nullable=False)
"""The column `key` of every table."""

Key = NewType("Key", str)
"""Sixteen lower-case hex digits, the first of the sha256 of a picture's URL or path."""


def key_of(source: str, ordinal: int = 0) -> Key:
    """The key of a picture.

    Args:
        source: URL, or path relative to the source.
        ordinal: how many pictures of the same source came before, which only archives can hold.
    """
    # No path or URL contains a NUL, so a numbered source never equals another source.
    named = f"{source}\0{ordinal}" if ordinal else source
    # A path that is not UTF-8 contains lone surrogates, which plain UTF-8 refuses to encode.
    return Key(hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS])


class Keys:
    """Gives pictures their keys, in order; the same source may come again."""

    def __init__(self) -> None:
        self.seen = Counter[str]()

    def give(self, source: str) -> Key:
        """The key of the next picture."""
        self.seen[source] += 1
        return key_of(source, self.seen[source] - 1)


def key_number(key: Key) -> int:
    """The key as a number below 2⁶⁴."""
    return int(key, 16)


def key_text(number: int) -> Key:
    """The inverse of `key_number`."""
    return Key(f"{int(number):0{DIGITS}x}")


def key_numbers(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column of keys as numbers, a third of the memory and quick to join on: (n,) uint64.

    Raises:
        ValueError: one is not 16 lower-case hex digits.
    """
    column = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    # Offsets of 32 bits would end at 134 million keys.
    text = column.cast(pa.large_binary())
    is_whole = pc.equal(pc.binary_length(text), DIGITS)
    if text.null_count or not pc.all(is_whole, min_count=0).as_py():
        raise ValueError("a key is not 16 hex digits")
    return _numbers(_characters(text))


def _characters(text: pa.LargeBinaryArray) -> np.ndarray:
    """The characters of values that are all 16 long: (n, 16) uint8."""
    if not len(text):
        return np.zeros((0, DIGITS), np.uint8)
    # All values are equally long, so they lie one after the other from the first one on.
    offsets, data = text.buffers()[1:]
    first = np.frombuffer(offsets, np.int64)[text.offset]
    last = first + DIGITS * len(text)
    return np.frombuffer(data, np.uint8)[first:last].reshape(-1, DIGITS)


def _numbers(characters: np.ndarray) -> np.ndarray:
    is_letter = characters >= ord("a")
    below_first = np.where(is_letter, ord("a") - 10, ord("0")).astype(np.uint8)
    # What lies below "0" wraps round to more than 15.
    digits = characters - below_first
    if (digits > 15).any() or (is_letter != (digits > 9)).any():
        raise ValueError("a key is not 16 hex digits")
    # Big-endian numbers sort as their texts do.
    nibbles = digits[:, 0::2] << 4 | digits[:, 1::2]
    return nibbles.view(">u8").astype(np.uint64).reshape(-1)
