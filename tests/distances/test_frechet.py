import numpy as np
import pytest
import torch
from scipy import linalg

from hdm.distances.frechet import (
    can_fit,
    extrapolated_replicates,
    frechet_distance,
    frechet_replicates,
)
from tests.distances.worlds import coverage, made


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
    assert can_fit(first, second) == (n > width)


def test_frechet_distance_is_torch_fidelitys():
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    first, second = clouds(0, 300, 240, 24)
    statistics = [
        metric_fid.fid_features_to_statistics(torch.tensor(one)) for one in (first, second)
    ]
    wanted = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    found = frechet_distance(first, second)
    assert found == pytest.approx(wanted[metric_fid.KEY_METRIC_FID], rel=1e-6)


def of_first(world):
    return frechet_replicates(
        world.models[0], world.reference, world.prompts, world.reference_prompts
    )


def test_intervals_hold_the_truth_as_often_as_they_say():
    worlds = [made(seed, num_prompts=100, repeats=2) for seed in range(120)]
    assert 0.89 <= coverage([of_first(world).estimate() for world in worlds]) <= 0.99


def test_two_models_are_compared_by_their_difference():
    def difference(world):
        one, two = (
            frechet_replicates(rows, world.reference, world.prompts, world.reference_prompts)
            for rows in world.models
        )
        return (one - two).estimate()

    worlds = [made(seed, shifts=(1.0, 1.5)) for seed in range(120)]
    assert 0.89 <= coverage([difference(world) for world in worlds]) <= 0.99
    # What both owe to prompts and reference cancels.
    alone, both = of_first(worlds[0]).estimate(), difference(worlds[0])
    assert both.error < alone.error


def test_repeating_a_prompt_narrows_no_interval():
    world = made(0, num_prompts=60)
    many = np.arange(60).repeat(5)
    once = of_first(world).estimate()
    often = frechet_replicates(
        world.models[0][many], world.reference[many], list(many), list(many)
    ).estimate()
    assert once.distinct == often.distinct == 60
    assert often.error == pytest.approx(once.error, rel=0.2)


def test_the_extrapolated_distance_has_no_bias():
    """Of two normal distributions a unit apart, whose distance is 1."""
    size, count = 32, 1000
    plain, extrapolated = [], []
    for seed in range(4):
        world = made(seed, num_prompts=count, size=size)
        sides = (world.models[0], world.reference, world.prompts, world.reference_prompts)
        plain.append(frechet_distance(*sides[:2]))
        extrapolated.append(extrapolated_replicates(*sides).estimate())
    assert np.mean(plain) > 1.3
    assert np.mean([one.value for one in extrapolated]) == pytest.approx(1, abs=0.15)
    assert all(abs(one.value - 1) < 3 * (one.error or 0) for one in extrapolated)
