"""Order and chance: bijections for every size, uniform and independent to what statistics can
see.
"""

from __future__ import annotations

import numpy as np
import pytest

from hdm.chance import endless, permuted, seed_at, seed_of, uniform


@pytest.mark.parametrize("count", [*range(1, 40), 255, 256, 257, 1000, 4097, 65_536])
def test_every_epoch_is_a_permutation(count: int) -> None:
    for epoch in range(3):
        found = permuted(np.arange(count), count, seed=7, epoch=epoch)
        assert np.array_equal(np.sort(found), np.arange(count))


def test_an_endless_order_repeats_nothing_within_an_epoch_however_it_is_cut() -> None:
    whole = endless(np.arange(30), 10, seed=7)
    for epoch in whole.reshape(3, 10):
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in whole.reshape(3, 10)}) == 3
    parts = [endless(np.arange(start, start + 6), 10, seed=7) for start in range(0, 30, 6)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_place_does_not_depend_on_what_is_asked_with_it() -> None:
    whole = permuted(np.arange(1000), 1000, 1, 2)
    some = np.array([999, 3, 500, 3])
    assert np.array_equal(permuted(some, 1000, 1, 2), whole[some])


def mixed(value: int) -> int:
    """SplitMix64 on Python's integers."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) % 2**64
    return value ^ value >> 31


def test_the_order_is_the_one_that_is_written_down() -> None:
    # The same network on Python's integers: a later version that shuffled otherwise would resume an
    # old run elsewhere.
    def key(*parts: int) -> int:
        found = 0
        for part in parts:
            found = mixed(found ^ part)
        return found

    def walked(value: int, count: int, half: int, keys: list[int]) -> int:
        while True:
            left, right = value >> half, value % 2**half
            for number in keys:
                left, right = right, left ^ mixed(right ^ number) % 2**half
            value = left << half | right
            if value < count:
                return value

    for count, half in [(1, 1), (20, 3), (1000, 5), (5000, 7)]:
        keys = [key(9, 4, number) for number in range(8)]
        expected = [walked(place, count, half, keys) for place in range(count)]
        assert permuted(np.arange(count), count, seed=9, epoch=4).tolist() == expected
    drawn = [(mixed(mixed(position) ^ key(9, 2)) >> 11) * 2.0**-53 for position in range(100)]
    assert uniform(np.arange(100), 9, 2).tolist() == drawn


def test_ten_million_places_cost_no_table() -> None:
    found = permuted(np.arange(64), 10**7, 0, 0)
    assert len(set(found.tolist())) == 64
    assert found.max() > 10**6


def test_order_is_unrelated_to_the_rows_and_to_other_epochs_and_seeds() -> None:
    count = 20_000
    orders = [
        permuted(np.arange(count), count, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    for first, second in [
        (np.arange(count), orders[0]),
        (orders[0], orders[1]),
        (orders[0], orders[2]),
    ]:
        # Rank correlation of independent orders: mean 0, standard deviation 1/√(n-1).
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(count)
    # Rows next to each other stay so about as often as chance has it (2 of n).
    steps = np.abs(np.diff(orders[0]))
    assert (steps == 1).sum() < 12


def test_small_sets_see_all_their_orders() -> None:
    seen = np.array([permuted(np.arange(4), 4, 0, epoch) for epoch in range(1200)])
    _, counts = np.unique(seen, axis=0, return_counts=True)
    assert len(counts) == 24
    # 24 orders, 50 each: chi-squared with 23 degrees of freedom is below 60 with probability
    # 0.99996.
    assert ((counts - 50) ** 2 / 50).sum() < 60


def test_draws_are_uniform_and_streams_independent() -> None:
    positions = np.arange(100_000)
    first, second = uniform(positions, 3, 0), uniform(positions, 3, 1)
    for drawn in (first, second, uniform(positions, 4, 0)):
        assert drawn.min() >= 0
        assert drawn.max() < 1
        counts = np.histogram(drawn, 100, (0, 1))[0]
        assert (
            (counts - 1000) ** 2 / 1000
        ).sum() < 170  # 99 degrees of freedom: mean 99, standard deviation 14
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.015
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.015


def test_seeds_are_the_ones_that_are_written_down() -> None:
    # Other seeds would be other noise: a training that was stopped would go on as another one.
    def expected(seed: int, purpose: int, position: int) -> int:
        return mixed((mixed((mixed(seed) + purpose) % 2**64) + position) % 2**64) % 2**32

    for seed in (0, 1, 2**31, 2**63 - 1, 2**64 - 1):
        for purpose in (1, 4):
            for position in (0, 1, 10**9, 2**40):
                assert seed_at(seed, purpose, position) == expected(seed, purpose, position)
    assert seed_of("caption:0123456789abcdef") == 0xF4A747559AA8C52


def test_neighbours_have_unrelated_seeds() -> None:
    drawn = [
        seed_at(seed, purpose, at) for seed in range(8) for purpose in (1, 2) for at in range(500)
    ]
    assert len(set(drawn)) == len(drawn)
    bits = np.unpackbits(np.array(drawn, ">u4").view(np.uint8).reshape(-1, 4), axis=1)
    assert np.abs(bits.mean(0) - 0.5).max() < 4 * 0.5 / np.sqrt(len(drawn))
