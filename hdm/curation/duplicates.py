"""Which pictures are copies of which: exact, over any number of pictures, in bounded memory.

The pictures are gone through in order. One that is near no original so far becomes an original itself; one that is near is a copy of the
first original it is near to. So no two originals are near each other, every copy names an original, and nearness is not handed on:
a chain of pictures that drift apart is not swallowed whole by its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hdm.curation.fingerprints import HASH_BITS, THUMBNAIL_SIDE

MAX_BRIGHTNESS = 32.0  # grey levels by which copies may differ as a whole
_ROWS, _COLUMNS = (
    64,
    4096,
)  # pairs looked at together: their first words stay in the processor's cache


@dataclass(frozen=True)
class Fingerprints:
    """One row a picture: hashes (N, 4) uint64, mirrored the same, thumbnails (N, 8, 8, 3) uint8, `sha256` of pixels."""

    hashes: np.ndarray
    mirrored: np.ndarray
    thumbnails: np.ndarray
    sha256: Sequence[str]

    @classmethod
    def from_columns(
        cls,
        hashes: Sequence[bytes],
        mirrored: Sequence[bytes],
        thumbnails: Sequence[bytes],
        sha256: Sequence[str],
    ) -> Fingerprints:
        """From the bytes in a table."""
        small = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(
            -1, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3
        )
        return cls(_words(hashes), _words(mirrored), small, sha256)


def _words(hashes: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, HASH_BITS // 64)


def find_copies(
    prints: Fingerprints, fit: np.ndarray, distance: float, colour: float, mirrored: bool = False
) -> np.ndarray:
    """The original that each picture is a copy of.

    Args:
        prints: of all pictures, in order.
        fit: (N,) bool; only these can be originals, so that a bad copy never displaces a good one.
        distance: share of the hash's bits that may differ; 0: only equal pixels count.
        colour: mean difference of the thumbnails, in grey levels and with the difference in overall brightness (at most 32) taken out.
        mirrored: whether a picture and its mirror image are one.

    Returns:
        (N,) int64: the number of the original, -1 for one that is no copy.
    """
    if distance == 0:
        return _equal_copies(prints.sha256, fit)
    near = _Nearness(prints, int(distance * HASH_BITS + 1e-9), colour, mirrored)
    copy_of = np.full(len(fit), -1)
    originals = np.zeros(0, np.int64)
    candidates = np.flatnonzero(fit)
    for start in range(0, len(candidates), _ROWS):
        block = candidates[start : start + _ROWS]
        copy_of[block] = near.first(block, originals)
        rest = block[copy_of[block] < 0]
        _sort_out(rest, near.pairs(rest, rest), copy_of)
        originals = np.concatenate([originals, rest[copy_of[rest] < 0]])
    unfit = np.flatnonzero(~fit)
    copy_of[unfit] = near.first(unfit, originals)
    return copy_of


def _equal_copies(sha256: Sequence[str], fit: np.ndarray) -> np.ndarray:
    first: dict[str, int] = {}
    for number in np.flatnonzero(fit).tolist():
        first.setdefault(sha256[number], number)
    found = (first.get(digest, number) for number, digest in enumerate(sha256))
    return np.array(
        [-1 if original == number else original for number, original in enumerate(found)], np.int64
    )


def _sort_out(block: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], copy_of: np.ndarray) -> None:
    """Find the copies within a block, of which none is near an earlier original."""
    for later, earlier in zip(*pairs, strict=True):
        # Pairs come in order of the later picture, so the earlier one is decided.
        if earlier < later and copy_of[block[later]] < 0 and copy_of[block[earlier]] < 0:
            copy_of[block[later]] = block[earlier]


@dataclass(frozen=True)
class _Nearness:
    prints: Fingerprints
    max_bits: int
    max_colour: float
    mirrored: bool

    def first(self, numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """For each of `numbers` the first of `others` that it is near to, or -1."""
        found = np.full(len(numbers), -1)
        for start in range(0, len(numbers), _ROWS):
            rows, columns = self.pairs(numbers[start : start + _ROWS], others)
            which, where = np.unique(rows, return_index=True)
            found[start + which] = others[columns[where]]
        return found

    def pairs(self, numbers: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in `numbers` and `others` of the near pairs, in order of the first, then the second."""
        hashes, thumbnails = self.prints.hashes[numbers], self.prints.thumbnails[numbers]
        found = [self._pairs(hashes, thumbnails, others)]
        if self.mirrored:
            found.append(self._pairs(self.prints.mirrored[numbers], thumbnails[:, :, ::-1], others))
        rows, columns = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((columns, rows))
        return rows[order], columns[order]

    def _pairs(
        self, hashes: np.ndarray, thumbnails: np.ndarray, others: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for start in range(0, len(others), _COLUMNS):
            some = others[start : start + _COLUMNS]
            # The first of four words alone rules out nearly all: it cannot differ by more bits than the whole.
            first = np.bitwise_count(hashes[:, :1] ^ self.prints.hashes[some, 0])
            row, column = np.divmod(
                np.flatnonzero(first <= self.max_bits), len(some)
            )  # four times as fast as np.nonzero
            bits = np.bitwise_count(hashes[row] ^ self.prints.hashes[some[column]]).sum(axis=1)
            row, column = row[bits <= self.max_bits], column[bits <= self.max_bits]
            alike = self._alike(thumbnails[row], self.prints.thumbnails[some[column]])
            rows.append(row[alike])
            columns.append(column[alike] + start)
        return np.concatenate(rows), np.concatenate(columns)

    def _alike(self, thumbnails: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whether the colours agree. A copy's brightness may have been changed as a whole, which says nothing; black is not white."""
        difference = thumbnails.astype(np.float32) - others
        brightness = difference.mean(axis=(1, 2, 3), keepdims=True)
        colour = np.abs(difference - brightness).mean(axis=(1, 2, 3))
        return (colour <= self.max_colour) & (np.abs(brightness[:, 0, 0, 0]) <= MAX_BRIGHTNESS)
