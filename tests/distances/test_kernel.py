import itertools
import math

import numpy as np
import pytest
import torch

from hdm.distances import kernel
from hdm.distances.kernel import kernel_distance
from tests.distances.worlds import coverage, made


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def naive(first, second):
    """CMMD's formula, pair by pair, and unbiased."""

    def near(a, b):
        return math.exp(-((a - b) ** 2).sum() / 200)

    within = 0.0
    for rows in (first, second):
        pairs = list(itertools.permutations(rows, 2))
        within += sum(near(a, b) for a, b in pairs) / len(pairs)
    across = sum(near(a, b) for a in first for b in second) / len(first) / len(second)
    return 1000 * (within - 2 * across)


@pytest.mark.parametrize("rows_at_once", [2, 256])
def test_kernel_distance_is_the_naive_double_sum(monkeypatch, rows_at_once):
    monkeypatch.setattr(kernel, "ROWS_AT_ONCE", rows_at_once)
    rng = np.random.default_rng(0)
    first, other = unit(rng.normal(size=(7, 4))), unit(rng.normal(size=(7, 4)))
    second = unit(rng.normal(0.5, 1, (9, 4)))
    prompts, others = [0, 1, 0, 2, 3, 1, 4], [0, 0, 1, 2, 3, 4, 5, 6, 0]
    found = kernel_distance([first], second, prompts, others)
    assert found.value == pytest.approx(naive(first, second), abs=1e-9)
    assert found.distinct == 5
    apart = kernel_distance([first, other], second, prompts, others)
    assert apart.value == pytest.approx(naive(first, second) - naive(other, second), abs=1e-9)


def test_the_size_of_blocks_changes_no_interval(monkeypatch):
    world = made(0, num_prompts=20, repeats=3)
    sides = (world.models, world.reference, world.prompts, world.reference_prompts)
    whole = kernel_distance(*sides)
    monkeypatch.setattr(kernel, "ROWS_AT_ONCE", 7)
    assert kernel_distance(*sides).error == pytest.approx(whole.error)


def test_kernel_distance_is_zero_on_average_for_one_distribution_and_not_for_two():
    def value(seed, shift):
        world = made(seed, num_prompts=20, shifts=(shift,))
        sides = (world.reference, world.prompts, world.reference_prompts)
        return kernel_distance(world.models, *sides).value

    same = np.array([value(seed, 0.0) for seed in range(300)])
    assert abs(same.mean()) < 4 * same.std() / math.sqrt(300)
    other = np.array([value(seed, 3.0) for seed in range(20)])
    assert other.min() > same.max()


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("shifts", [(0.0,), (0.3,), (1.5,), (0.5, 0.5), (0.5, 1.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(shifts, repeats):
    """For equal distributions, those a little apart, far ones, and differences between models. Of
    equal ones they may be wider: an estimated variance that is the least possible, or more, is on
    average more.
    """

    def estimate(world):
        sides = (world.reference, world.prompts, world.reference_prompts)
        return kernel_distance(world.models, *sides)

    worlds = [
        made(seed, num_prompts=60, repeats=repeats, shifts=shifts, spread=0.9)
        for seed in range(200)
    ]
    assert 0.90 <= coverage([estimate(world) for world in worlds]) <= (0.99 if any(shifts) else 1)


def test_with_its_kernel_the_distance_is_torch_fidelitys_kid():
    """Of one subset of all features, with KID's defaults (arXiv 1801.01401)."""
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(90, 12)), rng.normal(0.3, 1.2, (90, 12))
    wanted = metric_kid.kid_features_to_metric(
        torch.tensor(one), torch.tensor(two), kid_subsets=1, kid_subset_size=90, verbose=False
    )
    found = kernel_distance(
        [one], two, range(90), range(90), kernel=lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    )
    assert found.value / 1000 == pytest.approx(wanted[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-6)
