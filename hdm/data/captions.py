"""Captions, as token ids or text embeddings, found by the key of their picture.

Text embeddings lie in `text-<n>.parquet`, cut like the captions' tables, a row a caption; the empty caption's, for guidance, in
`empty.parquet` under the key "".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from hdm.data.pages import PagedColumn, damage_named, open_file, read_metadata
from hdm.data.tables import read_tables
from hdm.store import Output

EMPTY_TEXT = "empty.parquet"

TEXT = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("index", pa.int16(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),  # tokens
        pa.field("embedding", pa.binary(), nullable=False),  # (length, width) float16, little endian
    ]
)


def key_numbers(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Keys as numbers, a third of the memory and quick to join on: (n,) uint64.

    Raises:
        ValueError: one is not 16 lower-case hex digits.
    """
    whole = (keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys).cast(pa.large_binary())
    if whole.null_count or not pc.all(pc.equal(pc.binary_length(whole), 16), min_count=0).as_py():
        raise ValueError("a key is not 16 hex digits")
    data = whole.buffers()[2]
    # All values are 16 long, so they lie one after the other from the first one on.
    first = np.frombuffer(whole.buffers()[1], np.int64)[whole.offset] if len(whole) else 0
    text = np.frombuffer(data, np.uint8)[first : first + 16 * len(whole)].reshape(-1, 16) if len(whole) else np.zeros((0, 16), np.uint8)
    letters = text >= ord("a")
    digits = np.where(letters, text - (ord("a") - 10), text - ord("0")).astype(np.uint8)
    if (digits > 15).any() or (letters != (digits > 9)).any():
        raise ValueError("a key is not 16 hex digits")
    return (digits[:, 0::2] << 4 | digits[:, 1::2]).view(">u8").astype(np.uint64).reshape(-1)


def key_text(number: int) -> str:
    """The inverse of `key_numbers`, for one key."""
    return f"{int(number):016x}"


class CaptionIndex:
    """The rows of a table of captions, found by the picture's key.

    Args:
        keys: of the rows, (num_rows,) uint64; a picture's rows in the order of their index.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys, kind="stable").astype(np.int32)
        self._keys, starts = np.unique(keys[self._order], return_index=True)
        self._starts = np.append(starts, len(keys)).astype(np.int32)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For some pictures, where their captions start in the index and how many they have: (n,) int32 each; 0 and 0 where none."""
        if not len(self._keys):
            return np.zeros(len(keys), np.int32), np.zeros(len(keys), np.int32)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._keys[places] == keys
        return self._starts[places] * found, (self._starts[places + 1] - self._starts[places]) * found

    def rows(self, places: np.ndarray) -> np.ndarray:
        """The table's rows at places of the index, as `find` counts them."""
        return self._order[places]


class CaptionTable(Protocol):
    """Captions in the form that a model reads; the empty caption is the row after the last."""

    index: CaptionIndex
    lengths: np.ndarray
    """(num_rows + 1,) int64, in tokens."""

    def read(self, rows: np.ndarray, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows, cut and padded to `num_tokens`, and the mask of what is not padding, (n, num_tokens) bool."""
        ...


class TokenTable:
    """Token ids of every caption.

    Args:
        tokens: the output `encode.tokens`.
    """

    def __init__(self, tokens: Output) -> None:
        table = read_tables(tokens, "tokens")
        empty = np.asarray(tokens.summary["empty"], np.int32)
        column = table.column("token_ids")
        chunks = [chunk.flatten().to_numpy() for chunk in column.chunks]
        self.index = CaptionIndex(key_numbers(table.column("key")))
        self.lengths = np.append(pc.list_value_length(column).to_numpy(), len(empty)).astype(np.int64)
        self.pad_id = int(tokens.summary["pad_id"])
        self._token_ids = np.concatenate([*chunks, empty]).astype(np.int32, copy=False)
        self._ends = np.cumsum(self.lengths)

    def read(self, rows: np.ndarray, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (n, num_tokens) int64, padded with `pad_id`, and their mask (n, num_tokens) bool."""
        lengths = np.minimum(self.lengths[rows], num_tokens)
        mask = np.arange(num_tokens) < lengths[:, None]
        starts = self._ends[rows] - self.lengths[rows]
        token_ids = np.full(mask.shape, self.pad_id, np.int64)
        token_ids[mask] = self._token_ids[(starts[:, None] + np.arange(num_tokens))[mask]]
        return torch.from_numpy(token_ids), torch.from_numpy(mask)


class TextTable:
    """Text embeddings of every caption, read where they lie in the files.

    Args:
        text: the output `encode.text`.

    Raises:
        DamagedError: a file is not what was written.
    """

    def __init__(self, text: Output) -> None:
        paths = [path for path in text.paths(".parquet") if path.name != EMPTY_TEXT]
        self._files = [_TextFile(path) for path in [*paths, text.file(EMPTY_TEXT)]]
        self._firsts = np.cumsum([0, *(len(file.lengths) for file in self._files)])
        self.index = CaptionIndex(np.concatenate([np.zeros(0, np.uint64), *(file.keys for file in self._files[:-1])]))
        self.lengths = np.concatenate([file.lengths for file in self._files])
        self.width = self._files[-1].width

    def read(self, rows: np.ndarray, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Text embeddings (n, num_tokens, width) float32, padded with zeros, and their mask (n, num_tokens) bool.

        Raises:
            DamagedError: a row group, touched for the first time, is not what was written.
        """
        lengths = np.minimum(self.lengths[rows], num_tokens)
        stored = np.zeros((len(rows), num_tokens, self.width * 2), np.uint8)
        numbers = self._firsts.searchsorted(rows, side="right") - 1
        for place, (number, row, length) in enumerate(zip(numbers, rows - self._firsts[numbers], lengths, strict=True)):
            stored[place, :length] = self._files[number].row(int(row))[:length]
        mask = np.arange(num_tokens) < lengths[:, None]
        return torch.from_numpy(stored).view(torch.float16).float(), torch.from_numpy(mask)


class _TextFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        with damage_named(path), open_file(path, TEXT) as file:
            self.width = int(read_metadata(file)["width"])
            table = file.read(columns=["key", "length"])
            self.keys = key_numbers(table.column("key")) if path.name != EMPTY_TEXT else np.zeros(0, np.uint64)
            self.lengths = table.column("length").to_numpy().astype(np.int64)
            self._pages = PagedColumn(file, path, "embedding")
        # Where each value ends in its row group's payload: 4 bytes of length before each.
        firsts = self._pages.firsts
        sizes = self.lengths * (2 * self.width) + 4
        before = np.concatenate([[0], np.cumsum(sizes)])
        self._ends = before[1:] - np.repeat(before[firsts[:-1]], np.diff(firsts))
        self._firsts = firsts.tolist()

    def row(self, row: int) -> np.ndarray:
        """One text embedding as bytes where it lies in the file: (length, width · 2) uint8, read-only."""
        payload = self._pages.payload(bisect_right(self._firsts, row) - 1)
        end, row_bytes = self._ends[row], self.width * 2
        return payload[end - self.lengths[row] * row_bytes : end].reshape(-1, row_bytes)


def text_metadata(width: int, weights: Mapping[str, str]) -> dict[str, Any]:
    """What the footer of a text shard says: the embeddings' width, and the sha256 of what made them."""
    return {"width": width, "dtype": "float16", "weights": dict(weights)}


def captions_by_key(captions: Output, keys: Sequence[str]) -> dict[str, list[str]]:
    """The captions of some pictures, in the order of their index; pictures without one have an empty list."""
    table = read_tables(captions, "captions", ["key", "caption"])
    wanted = table.filter(pc.is_in(table.column("key"), pa.array(list(keys), pa.string())))
    found: dict[str, list[str]] = {key: [] for key in keys}
    for key, caption in zip(wanted.column("key").to_pylist(), wanted.column("caption").to_pylist(), strict=True):
        found[key].append(caption)
    return found
