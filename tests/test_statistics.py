import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, optimize, stats

from hdm.statistics import (
    Interval,
    Kernels,
    Share,
    compare_with_reference,
    frechet_distance,
    mean_with_error,
)


@given(st.integers(1, 400), st.data())
def test_wilsons_bounds_solve_the_score_equation(total, data):
    right = data.draw(st.integers(0, total))
    low, high = Share(right, total).interval
    share = right / total

    def excess(p):  # |observed - p| against 1.96 standard deviations of a binomial with that p
        return (share - p) ** 2 - 1.959963984540054**2 * p * (1 - p) / total

    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    if 0 < right < total:
        assert low == pytest.approx(optimize.brentq(excess, 0, share), abs=1e-9)
        assert high == pytest.approx(optimize.brentq(excess, share, 1), abs=1e-9)


def test_wilsons_interval_of_known_cases():
    # Newcombe 1998, table I: 81/263 and 15/148, 0/20, 1/29
    for right, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert Share(right, total).interval == pytest.approx((low, high), abs=5e-5)
    assert Share(0, 0).to_dict() == {"right": 0, "total": 0, "share": 0.0, "low": 0.0, "high": 1.0}


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_means_interval_is_where_the_t_test_turns(count):
    values = np.random.default_rng(count).normal(0.3, 1.0, count)
    found = Interval.of(list(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.half is not None
    for bound in (found.mean - found.half, found.mean + found.half):
        assert stats.ttest_1samp(values, bound).pvalue == pytest.approx(0.05)
    assert found.excludes_zero == (stats.ttest_1samp(values, 0).pvalue < 0.05)
    assert Interval.of([2.0]) == Interval(2.0, None)
    assert not Interval.of([2.0]).excludes_zero


def clouds(seed, n, m, width):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)) @ rng.normal(size=(width, width)), rng.normal(
        0.4, 1.5, (m, width)
    )


@pytest.mark.parametrize(("n", "m", "width"), [(60, 90, 5), (200, 200, 16), (10, 12, 20)])
def test_frechet_distance_is_that_of_scipys_matrix_root(n, m, width):
    first, second = clouds(n, n, m, width)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    wanted = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
    # Where there are fewer samples than dimensions scipy's root of a singular product is itself
    # only good to about 1e-3.
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-8 if n > width else 1e-3)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first, first + 3) == pytest.approx(9 * width, rel=1e-6)


def test_kernel_distance_is_the_naive_double_sum():
    rng = np.random.default_rng(0)
    first, second = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (rng.normal(size=(7, 4)), rng.normal(0.5, 1, (9, 4)))
    )

    def kernel(a, b):
        return math.exp(-((a - b) ** 2).sum() / 200)

    within = [
        sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j)
        / len(x)
        / (len(x) - 1)
        for x in (first, second)
    ]
    across = sum(kernel(a, b) for a in first for b in second) / len(first) / len(second)
    assert Kernels(first, second).distance() == pytest.approx(
        1000 * (sum(within) - 2 * across), abs=1e-9
    )


def test_kernel_distance_is_zero_on_average_for_one_distribution_and_not_for_two():
    rng = np.random.default_rng(1)

    def draw(shift):
        rows = rng.normal(shift, 1, (20, 8))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    same = np.array([Kernels(draw(0), draw(0)).distance() for _ in range(400)])
    assert abs(same.mean()) < 4 * same.std() / 20
    other = np.array([Kernels(draw(0), draw(1)).distance() for _ in range(20)])
    assert other.min() > same.max()


def test_the_error_of_a_mean():
    values = np.array([1.0, 2.0, 4.0])
    assert mean_with_error(values) == {
        "mean": pytest.approx(7 / 3),
        "standard_error": pytest.approx(math.sqrt(7 / 3 / 3)),
        "count": 3,
    }
    assert mean_with_error(np.array([])) == {"mean": None, "standard_error": None, "count": 0}


def test_answers_to_one_question_make_an_interval_no_narrower():
    once, often = Share(15, 40), Share(150, 400, distinct=40)
    assert often.value == once.value
    assert often.interval == once.interval
    values = np.random.default_rng(0).normal(size=40)
    repeated = mean_with_error(np.repeat(values, 10), [n for n in range(40) for _ in range(10)])
    alone = mean_with_error(values)
    assert repeated["mean"] == pytest.approx(alone["mean"])
    assert repeated["standard_error"] == pytest.approx(alone["standard_error"])
    assert (repeated["count"], repeated["distinct"]) == (400, 40)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("apart", "widest"), [(1.0, 1.5), (0.0, 2.5)])
def test_the_intervals_of_distances_are_as_wide_as_other_samples_differ(apart, widest):
    """Fresh samples differ by what the bootstrap of one sample says; by less where the distance is
    nothing but chance.
    """

    def sample(seed):
        rng = np.random.default_rng(seed)
        held, asked = rng.normal(1, 0.5, (60, 8)), rng.normal(1, 0.5, (60, 8))
        asked[:, 0] += apart
        sets = {"one": unit(asked + rng.normal(0, 0.2, (60, 8))), "two": unit(asked)}
        return compare_with_reference(unit(held), sets, range(60), range(60))

    found = [sample(seed) for seed in range(24)]
    for name in ("frechet", "kernel"):
        for what in ("two", "difference"):
            spread = np.std([one[name][what]["value"] for one in found], ddof=1)
            told = np.mean([one[name][what]["half"] for one in found]) / 1.96
            assert 0.7 < told / spread < widest


def test_repeating_a_prompt_narrows_no_interval_of_distances():
    rng = np.random.default_rng(0)
    held, asked = unit(rng.normal(1, 0.5, (30, 6))), unit(rng.normal(1, 0.5, (30, 6)))
    other = unit(asked + rng.normal(0, 0.3, (30, 6)))
    once = compare_with_reference(held, {"one": other, "two": asked}, range(30), range(30))
    many = np.arange(30).repeat(8)
    often = compare_with_reference(
        held[many], {"one": other[many], "two": asked[many]}, list(many), list(many)
    )
    for name in ("frechet", "kernel"):
        for what in ("one", "two", "difference"):
            assert often[name][what]["half"] > 0.7 * once[name][what]["half"]
