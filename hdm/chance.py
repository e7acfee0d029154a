"""Order and random numbers as pure functions of a position: there is no state to save, and nothing
depends on ranks or batches.

Everything is computed from a seed and 64-bit counters with SplitMix64's mixing function (Steele,
Lea, Flood 2014), so results do not depend on the version of any library. Draws for a text, such as
a key, use a seed derived from the text's sha256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np

# With eight rounds, rank correlation and neighbours of the order are about as by chance
# (bench/RESULTS.md).
ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15


def mix(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers in which every output bit depends on every input bit: (…)
    uint64 → (…) uint64.
    """
    # In place: allocating and filling new arrays takes longer than the arithmetic.
    mixed = values + np.uint64(_GOLDEN)
    shifted = np.right_shift(mixed, np.uint64(30))
    mixed ^= shifted
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= np.right_shift(mixed, np.uint64(31), out=shifted)
    return mixed


def uniform(positions: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Independent draws, one for each position.

    Args:
        positions: any shape, non-negative integers.
        seed: of the whole.
        stream: selects one of several draws at the same position.

    Returns:
        (…) float64 in [0, 1).
    """
    drawn = mix(mix(positions.astype(np.uint64)) ^ _key(seed, stream))
    # A float64 holds the upper 53 bits exactly, so the result never rounds up to 1.
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_at(seed: int, purpose: int, position: int) -> int:
    """The seed of a generator for one purpose at one position, in [0, 2³²), which is as much as
    torch's CPU generator reads. Neighbouring seeds and positions give unrelated draws.
    """
    # Sums, where `_key` takes the exclusive or: the noise of every training so far was drawn so.
    return int(_folded((seed, purpose, position), np.add)[0]) % 2**32


def seed_of(text: str) -> int:
    """A seed below 2⁶⁰, derived from a text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def permuted(places: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """The values of a random permutation of 0 … count-1 at some places, without computing the
    others.

    A Feistel network permutes the smallest power of four that is at least `count`; results outside
    the range go through it again until they are inside (cycle walking; Black and Rogaway 2002), on
    average fewer than four times.

    Args:
        places: (n,) integers in [0, count).
        count: size of the whole.
        seed, epoch: one permutation for each pair.

    Returns:
        (n,) int64 in [0, count), different for different places.
    """
    # Each half has this many bits: 4^half is the smallest power of four that is at least `count`.
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    tables = _round_tables(half, seed, epoch)
    permuted_places = _feistel(places.astype(np.int64), half, tables)
    outside = np.flatnonzero(permuted_places >= count)
    while len(outside):
        walked = _feistel(permuted_places[outside], half, tables)
        permuted_places[outside] = walked
        outside = outside[walked >= count]
    return permuted_places


def endless(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The items at some positions of an endless sequence, in which all `count` items occur once, in
    a new order, before any repeats.

    Args:
        positions: (n,) non-negative integers.
        count: number of items.
        seed: of all the orders.

    Returns:
        (n,) int64 in [0, count).
    """
    epochs, places = np.divmod(positions, count)
    items = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        items[here] = permuted(places[here], count, seed, int(epoch))
    return items


def _feistel(values: np.ndarray, half: int, tables: np.ndarray) -> np.ndarray:
    # These are new arrays, which the rounds below may change in place; `values` is the caller's.
    left = values >> half
    right = values & ((1 << half) - 1)
    for table in tables:
        left ^= table[right]
        left, right = right, left
    left <<= half
    left |= right
    return left


@lru_cache(maxsize=8)
def _round_tables(half: int, seed: int, epoch: int) -> np.ndarray:
    """The term that each round adds to one half, for every value of the other half, (ROUNDS,
    2^half) int64. Precomputed, because there are few values and many look-ups.
    """
    values = np.arange(1 << half, dtype=np.uint64)
    mask = np.uint64((1 << half) - 1)
    return np.stack(
        [mix(values ^ _key(seed, epoch, number)) & mask for number in range(ROUNDS)]
    ).astype(np.int64)


@lru_cache(maxsize=1024)
def _key(*parts: int) -> np.ndarray:
    """One 64-bit number for a tuple of integers, as an array of one (scalars warn where arrays
    wrap).
    """
    return _folded(parts, np.bitwise_xor)


def _folded(
    parts: tuple[int, ...], join: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    folded = np.zeros(1, np.uint64)
    for part in parts:
        folded = mix(join(folded, np.array([part % 2**64], np.uint64)))
    return folded
