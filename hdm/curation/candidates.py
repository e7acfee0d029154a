"""Find all pairs of 64-bit hashes that differ in few bits, in bounded memory and without comparing
every pair.

Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012) with the thresholds of the general
pigeonhole principle (Qin and others, ICDE 2018). Bits are divided into bands, and each band has a
radius. Hashes that differ in more than its radius in every one of b bands differ in at least the
sum of the radii and b bits; where that is more than the limit, every near pair is within the radius
of some band. So each hash is compared with those alone that a band's value and its neighbours lead
to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb

import numpy as np

HASH_BITS = 64
WIDEST = 24  # bits of a band: a table of 64 MiB holds where each of its values starts
MOST_BANDS = 16
BLOCK = 1 << 16  # pairs compared at once, 10 bytes each: they stay in the cache
ROWS = 1 << 15  # hashes whose bits are moved at once
SAMPLE = 1 << 16  # hashes from which the balance of each bit is estimated
# Costs on one core, in nanoseconds: comparing two hashes, gathering what the hashes of one value
# of a band are compared with, and each neighbour of that value.
COMPARISON = 1
GROUP = 50_000
NEIGHBOUR = 300
_Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Band:
    """Some neighbouring bits of a hash: those from `shift` on."""

    shift: int
    width: int
    radius: int

    @property
    def neighbours(self) -> int:
        """How many values lie within the radius of one."""
        return sum(comb(self.width, bits) for bits in range(self.radius + 1))

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """(N,) uint64 → (N,) int64, the values of the band."""
        values = (hashes >> np.uint64(self.shift)) & np.uint64((1 << self.width) - 1)
        return values.view(np.int64)


def similar(left: np.ndarray, right: np.ndarray, max_bits: int) -> Iterator[_Pairs]:
    """All pairs of hashes that differ in at most `max_bits` bits, each once.

    Args:
        left: (N,) uint64.
        right: (M,) uint64.
        max_bits: from 0 to 64.

    Yields:
        Positions in `left` and in `right`, in no order.
    """
    bands = choose_bands(len(left), len(right), max_bits)
    if bands:
        yield from by_bands(left, right, max_bits, bands)
    else:
        yield from all_with_all(left, right, max_bits)


def choose_bands(num_left: int, num_right: int, max_bits: int) -> tuple[Band, ...]:
    """The bands by which hashes of evenly spread bits are compared fastest; none where comparing
    all with all is faster.
    """
    least = num_left * num_right * COMPARISON
    chosen: tuple[Band, ...] = ()
    for count in range(1, min(max_bits + 1, MOST_BANDS) + 1):
        bands = divide(max_bits, count)
        cost = sum(_cost(band, num_left, num_right) for band in bands)
        if cost < least:
            least = cost
            chosen = bands
    return chosen


def _cost(band: Band, num_left: int, num_right: int) -> int:
    """In nanoseconds."""
    num_values = 1 << band.width
    comparisons = num_left * num_right * band.neighbours // num_values
    groups = min(num_left, num_values) * (GROUP + NEIGHBOUR * band.neighbours)
    return comparisons * COMPARISON + groups


def divide(max_bits: int, count: int) -> tuple[Band, ...]:
    """Bands of which every pair within `max_bits` is within the radius of at least one.

    Args:
        count: of bands, at most `max_bits` + 1.
    """
    # Radii that add up to this, and one bit more in each band, are more than `max_bits`.
    radius, num_larger = divmod(max_bits - count + 1, count)
    # One bit more of radius costs about as much as two bits of width save.
    width = min((HASH_BITS - 2 * num_larger) // count, WIDEST)
    bands = []
    shift = 0
    for number in range(count):
        larger = number < num_larger
        band = Band(shift, min(width + 2 * larger, WIDEST), radius + larger)
        bands.append(band)
        shift += band.width
    return tuple(bands)


def all_with_all(left: np.ndarray, right: np.ndarray, max_bits: int) -> Iterator[_Pairs]:
    """As `similar`, by comparing every pair."""
    # Block by block, so that memory does not grow with the number of pairs.
    for start in range(0, len(right), BLOCK):
        some = right[start : start + BLOCK]
        rows = max(BLOCK // len(some), 1)
        for first in range(0, len(left), rows):
            bits = np.bitwise_count(left[first : first + rows, None] ^ some)
            hits = np.flatnonzero(bits <= max_bits)
            if len(hits):
                row, column = np.divmod(hits, len(some))
                yield row + first, column + start


def by_bands(
    left: np.ndarray, right: np.ndarray, max_bits: int, bands: tuple[Band, ...]
) -> Iterator[_Pairs]:
    """As `similar`, by looking up the neighbours of each hash's value in each band."""
    if not len(left) or not len(right):
        return
    order = _dealt(right, bands)
    # Equal hashes are looked up and found once, however many there are.
    mine = _Distinct(_reordered(left, order))
    theirs = _Distinct(_reordered(right, order))
    for number, band in enumerate(bands):
        for one, other in _agreeing(mine.hashes, theirs.hashes, max_bits, band):
            different = mine.hashes[one] ^ theirs.hashes[other]
            fresh = np.ones(len(one), bool)
            # A pair that is near in several bands is yielded for the first of them.
            for earlier in bands[:number]:
                fresh &= np.bitwise_count(earlier.of(different)) > earlier.radius
            yield from _all_equal(mine, one[fresh], theirs, other[fresh])


def _dealt(hashes: np.ndarray, bands: tuple[Band, ...]) -> np.ndarray:
    """(64,) the bit that goes to each place, so that every band has its share of the bits that
    hardly vary. Bands of such bits alone would tell few hashes apart.
    """
    step = len(hashes) // SAMPLE + 1
    means = _to_bits(hashes[::step]).mean(axis=0)
    most_varied_first = np.argsort(np.abs(means - 0.5), kind="stable")
    free = [list(range(band.shift, band.shift + band.width)) for band in bands]
    free.append(list(range(bands[-1].shift + bands[-1].width, HASH_BITS)))
    order = np.zeros(HASH_BITS, np.int64)
    turn = 0
    for bit in most_varied_first.tolist():
        # The last list, of places outside all bands, takes what no band has room for.
        if not any(free[:-1]):
            order[free[-1].pop()] = bit
            continue
        while not free[turn % len(bands)]:
            turn += 1
        order[free[turn % len(bands)].pop()] = bit
        turn += 1
    return order


def _reordered(hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Hashes whose bit at each place is the one that `order` has there."""
    result = np.zeros(len(hashes), np.uint64)
    for start in range(0, len(hashes), ROWS):
        some = hashes[start : start + ROWS]
        moved = result[start : start + ROWS]
        for place, bit in enumerate(order.tolist()):
            moved |= ((some >> np.uint64(bit)) & np.uint64(1)) << np.uint64(place)
    return result


def _to_bits(hashes: np.ndarray) -> np.ndarray:
    """(N,) uint64 → (N, 64) uint8, the lowest bit first."""
    octets = np.ascontiguousarray(hashes, "<u8").view(np.uint8).reshape(-1, HASH_BITS // 8)
    return np.unpackbits(octets, axis=1, bitorder="little")


class _Distinct:
    """`hashes` are the different ones. The positions of those equal to the n-th are `places` from
    `starts[n]` to `starts[n + 1]`.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        order = np.argsort(hashes)
        ordered = hashes[order]
        first = np.ones(len(hashes), bool)
        first[1:] = ordered[1:] != ordered[:-1]
        self.places = _small(order)
        self.hashes = ordered[first]
        self.starts = _small(np.append(np.flatnonzero(first), len(hashes)))

    def counts(self, numbers: np.ndarray) -> np.ndarray:
        counts: np.ndarray = self.starts[numbers + 1] - self.starts[numbers]
        return counts


def _small(positions: np.ndarray) -> np.ndarray:
    """Half the memory where 32 bits are enough."""
    return positions.astype(np.int32 if positions.max(initial=0) < 2**31 else np.int64)


def _agreeing(left: np.ndarray, right: np.ndarray, max_bits: int, band: Band) -> Iterator[_Pairs]:
    """Near pairs that are within the radius of the band."""
    left_order = np.argsort(band.of(left))
    left_sorted = left[left_order]
    values, left_starts = np.unique(band.of(left_sorted), return_index=True)
    left_ends = np.append(left_starts[1:], len(left))
    right_values = band.of(right)
    starts = np.zeros(2**band.width + 1, np.int64)
    np.cumsum(np.bincount(right_values, minlength=2**band.width), out=starts[1:])
    right_order = _small(np.argsort(right_values))
    del right_values
    right_sorted = right[right_order]
    masks = _masks(band.width, band.radius)
    groups = zip(values.tolist(), left_starts.tolist(), left_ends.tolist(), strict=True)
    for value, first, last in groups:
        near = masks ^ value
        begins = starts[near]
        ends = starts[near + 1]
        # Slices are copied faster than single hashes are picked.
        ranges = zip(begins.tolist(), ends.tolist(), strict=True)
        others = np.concatenate([right_sorted[begin:end] for begin, end in ranges])
        for row, place in all_with_all(left_sorted[first:last], others, max_bits):
            offsets = np.cumsum(ends - begins)
            piece = np.searchsorted(offsets, place, "right")
            place += ends[piece] - offsets[piece]
            yield left_order[first + row], right_order[place]


@cache
def _masks(width: int, radius: int) -> np.ndarray:
    masks = []
    for bits in range(radius + 1):
        for chosen in combinations(range(width), bits):
            masks.append(sum(1 << bit for bit in chosen))
    return np.array(masks)


def _blocks(counts: np.ndarray) -> Iterator[slice]:
    """Slices of rows whose counts add up to a BLOCK at most, or of one row."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = ends[first - 1] if first else 0
        stop = max(int(np.searchsorted(ends, before + BLOCK, "right")), first + 1)
        yield slice(first, stop)
        first = stop


def _ranges(begin: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The concatenated ranges of `count` numbers from `begin` on."""
    ends = np.cumsum(count)
    ranges = np.arange(ends[-1] if len(ends) else 0)
    ranges += np.repeat(begin - ends + count, count)
    return ranges


def _all_equal(
    mine: _Distinct, one: np.ndarray, theirs: _Distinct, other: np.ndarray
) -> Iterator[_Pairs]:
    """All pairs of positions that hold these pairs of hashes."""
    my_counts = mine.counts(one)
    their_counts = theirs.counts(other)
    # Each position of the one hash, beside the other hash.
    for block in _blocks(my_counts):
        my_places = mine.places[_ranges(mine.starts[one[block]], my_counts[block])]
        begin = np.repeat(theirs.starts[other[block]], my_counts[block])
        count = np.repeat(their_counts[block], my_counts[block])
        for inner in _blocks(count):
            left = np.repeat(my_places[inner], count[inner])
            yield left, theirs.places[_ranges(begin[inner], count[inner])]
