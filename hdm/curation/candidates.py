"""Find all pairs of 64-bit hashes that differ in few bits, in bounded memory and without comparing
every pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

# Each hash has four bands of 16 bits. By the pigeonhole principle, hashes within d bits of each
# other differ in at most d // 4 bits of at least one band.
BANDS = 4
BLOCK = 1 << 20  # pairs compared at once, 8 bytes each
# Up to this number of pairs, comparing all of them is faster than sorting.
EXHAUSTIVE = 1 << 30
_Pairs = tuple[np.ndarray, np.ndarray]


def similar(left: np.ndarray, right: np.ndarray, max_bits: int) -> Iterator[_Pairs]:
    """All pairs of hashes that differ in at most `max_bits` bits, each once.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): at 10 bits a hash is compared with
    about a hundredth of the others.

    Args:
        left: (N,) uint64.
        right: (M,) uint64.
        max_bits: from 0 to 64.

    Yields:
        Positions in `left` and in `right`, in no order.
    """
    if len(left) * len(right) <= EXHAUSTIVE or max_bits // BANDS > 3:
        yield from _all_with_all(left, right, max_bits)
        return
    for band in range(BANDS):
        yield from _agreeing(left, right, max_bits, band)


def _all_with_all(left: np.ndarray, right: np.ndarray, max_bits: int) -> Iterator[_Pairs]:
    # Block by block, so that memory does not grow with the number of pairs.
    for start in range(0, len(right), BLOCK):
        some = right[start : start + BLOCK]
        rows = max(BLOCK // len(some), 1)
        for first in range(0, len(left), rows):
            bits = np.bitwise_count(left[first : first + rows, None] ^ some)
            row, column = np.divmod(np.flatnonzero(bits <= max_bits), len(some))
            yield row + first, column + start


def _agreeing(left: np.ndarray, right: np.ndarray, max_bits: int, band: int) -> Iterator[_Pairs]:
    """Pairs that are within `max_bits // BANDS` bits in this band but in no earlier one."""
    radius = max_bits // BANDS
    masks = _masks(radius)
    left_order, left_starts = _sorted_by(left, band)
    right_order, right_starts = _sorted_by(right, band)
    sorted_right = right[right_order]
    for value in np.flatnonzero(np.diff(left_starts)).tolist():
        mine = left_order[left_starts[value] : left_starts[value + 1]]
        near = value ^ masks
        candidates = _ranges(right_starts[near], right_starts[near + 1])
        for row, column in _all_with_all(left[mine], sorted_right[candidates], max_bits):
            rows = mine[row]
            columns = right_order[candidates[column]]
            words = (left[rows] ^ right[columns]).view(np.uint16).reshape(-1, BANDS)
            # A pair that is near in several bands was yielded for the first of them.
            fresh = (np.bitwise_count(words[:, :band]) > radius).all(axis=1)
            yield rows[fresh], columns[fresh]


def _sorted_by(hashes: np.ndarray, band: int) -> _Pairs:
    """Positions sorted by the band's value, and where each of the 65,536 values starts in them."""
    values = hashes.view(np.uint16).reshape(-1, BANDS)[:, band]
    starts = np.zeros(2**16 + 1, np.int64)
    np.cumsum(np.bincount(values, minlength=2**16), out=starts[1:])
    return np.argsort(values, kind="stable"), starts


@cache
def _masks(radius: int) -> np.ndarray:
    values = np.arange(2**16)
    return values[np.bitwise_count(values) <= radius]


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The concatenated ranges [start, stop)."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    shifts = np.repeat(starts - ends + lengths, lengths)
    ranges: np.ndarray = np.arange(ends[-1]) + shifts
    return ranges
