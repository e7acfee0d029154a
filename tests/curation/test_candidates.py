"""The search for near hashes against comparing all with all."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdm.curation.candidates import by_bands, choose_bands, divide, similar


def near_hashes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of random bits, and others of which some differ from them in 0 to 13 bits."""
    rng = np.random.default_rng(0)
    left = rng.integers(0, 2**64, count, dtype=np.uint64)
    right = rng.integers(0, 2**64, 3 * count, dtype=np.uint64)
    for number in range(count):
        right[number] = left[number] ^ flip(rng, int(rng.integers(0, 14)))
    right[-5:] = left[0]  # a crowd
    return left, right


def flip(rng: np.random.Generator, bits: int) -> np.uint64:
    places = rng.choice(64, bits, replace=False)
    return np.uint64(sum(1 << place for place in places.tolist()))


def naive(left: np.ndarray, right: np.ndarray, max_bits: int) -> list[tuple[int, int]]:
    bits = np.array([[int(a ^ b).bit_count() for b in right.tolist()] for a in left.tolist()])
    return [(one, other) for one, other in np.argwhere(bits <= max_bits).tolist()]


def listed(pairs) -> list[tuple[int, int]]:
    """Sorted, so a pair that comes twice is in the list twice."""
    some = [list(zip(one.tolist(), other.tolist(), strict=True)) for one, other in pairs]
    return sorted(itertools.chain(*some))


@pytest.mark.parametrize("max_bits", [0, 3, 10, 13])
def test_every_near_pair_is_found_once(max_bits):
    left, right = near_hashes(400)
    expected = naive(left, right, max_bits)
    assert listed(similar(left, right, max_bits)) == expected
    for count in range(max(max_bits // 3, 1), min(max_bits, 5) + 2):
        found = by_bands(left, right, max_bits, divide(max_bits, count))
        assert listed(found) == expected, count


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    max_bits=st.integers(0, 14),
    entropy=st.integers(1, 64),
    rotation=st.integers(0, 63),
)
def test_hashes_of_little_entropy_are_found_too(seed, max_bits, entropy, rotation):
    """Most bits are alike in all hashes, as in pictures that show next to nothing."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, (2, 60), dtype=np.uint64) >> np.uint64(64 - entropy)
    if rotation:
        high = hashes << np.uint64(rotation)
        hashes = high | (hashes >> np.uint64(64 - rotation))
    left, right = hashes
    found = by_bands(left, right, max_bits, divide(max_bits, min(max_bits + 1, 4)))
    assert listed(found) == naive(left, right, max_bits)


@pytest.mark.parametrize("max_bits", range(17))
def test_whatever_the_differing_bits_a_band_is_near(max_bits):
    """The worst case: as many bits as each band may lose, and one more."""
    for count in range(1, max_bits + 2):
        bands = divide(max_bits, count)
        assert sum(band.radius + 1 for band in bands) > max_bits
        assert bands[-1].shift + bands[-1].width <= 64
        for one, other in itertools.pairwise(bands):
            assert one.shift + one.width == other.shift


def test_many_equal_hashes_cost_their_pairs_and_no_comparison():
    """Equal hashes are looked up once: their pairs come in blocks, as many as are asked for."""
    left = np.full(10**5, 7, np.uint64)
    right = np.full(10**5, 11, np.uint64)
    pairs = by_bands(left, right, 10, divide(10, 3))
    blocks = list(itertools.islice(pairs, 5))
    assert all(0 < len(one) == len(other) <= 10**5 for one, other in blocks)
    seen = np.concatenate([one * 10**5 + other for one, other in blocks])
    assert len(np.unique(seen)) == len(seen)
    assert list(by_bands(left, right, 1, divide(1, 2))) == []


def test_more_hashes_are_divided_into_wider_bands():
    assert choose_bands(100, 100, 10) == ()
    some = choose_bands(10**4, 10**5, 10)
    more = choose_bands(10**6, 10**7, 10)
    assert some
    assert len(more) < len(some)
    assert choose_bands(10**6, 10**7, 40) == ()
