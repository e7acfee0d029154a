import numpy as np
import pytest

from hdm.distances import neighbours
from hdm.distances.jackknife import grouped, halves
from hdm.distances.neighbours import density_and_coverage, precision_and_recall
from tests.distances.worlds import coverage, made


def naive(generated, real, k):
    """The definitions, item by item."""

    def ball(rows, row):
        return sorted(np.linalg.norm(rows - rows[row], axis=1))[k]  # the nearest is the row itself

    def inside(row, rows, balls):
        return sum(
            np.linalg.norm(row - other) < ball for other, ball in zip(rows, balls, strict=True)
        )

    real_balls = [ball(real, row) for row in range(len(real))]
    balls = [ball(generated, row) for row in range(len(generated))]
    lies_in = [inside(row, real, real_balls) for row in generated]
    reached = [inside(row, generated, balls) for row in real]
    near = [
        min(np.linalg.norm(generated - row, axis=1)) < ball
        for row, ball in zip(real, real_balls, strict=True)
    ]
    return {
        "precision": np.mean(np.array(lies_in) > 0),
        "recall": np.mean(np.array(reached) > 0),
        "density": np.sum(lies_in) / k / len(generated),
        "coverage": np.mean(near),
    }


def measured(generated, real, prompts, real_prompts, k):
    sides = (generated, real, prompts, real_prompts, k)
    return {**precision_and_recall(*sides), **density_and_coverage(*sides)}


@pytest.mark.parametrize(("k", "candidates"), [(1, 64), (3, 64), (5, 64), (3, 5)])
def test_numbers_are_those_of_their_definitions_also_of_halves(monkeypatch, k, candidates):
    monkeypatch.setattr(neighbours, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(neighbours, "CANDIDATES", candidates)
    world = made(k, num_prompts=25, repeats=2, size=3, spread=0.7)
    sides = (world.models[0], world.reference, world.prompts, world.reference_prompts)
    found = measured(*sides, k)
    kept = halves(world.prompts)[4]
    without = naive(world.models[0][kept], world.reference, k)
    real_without = naive(world.models[0], world.reference[kept], k)
    for name, wanted in naive(*sides[:2], k).items():
        assert found[name].value == pytest.approx(wanted)
        assert found[name].without[0][4] == pytest.approx(without[name])
        assert found[name].without[1][4] == pytest.approx(real_without[name])


def test_numbers_are_those_of_prdc():
    prdc = pytest.importorskip("prdc")
    rng = np.random.default_rng(0)
    generated, real = rng.normal(0.3, 0.9, (200, 16)), rng.normal(size=(240, 16))
    wanted = prdc.compute_prdc(real_features=real, fake_features=generated, nearest_k=5)
    found = measured(generated, real, range(200), range(240), 5)
    assert {name: one.value for name, one in found.items()} == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage"])
def test_intervals_hold_the_truth_as_often_as_they_say(name, simulated):
    assert 0.90 <= simulated[name] <= 0.99


@pytest.fixture(scope="module")
def simulated():
    """By name, how often intervals hold the truth."""
    worlds = [made(seed, num_prompts=100, repeats=2, size=4) for seed in range(150)]
    found = []
    for world in worlds:
        sides = (world.models[0], world.reference, world.prompts, world.reference_prompts)
        found.append(measured(*sides, 3))
    return {name: coverage([one[name].estimate() for one in found]) for name in found[0]}


def test_prompts_are_left_out_whole_and_alike_in_sets_of_the_same_prompts():
    groups = grouped(["a", "b", "a", "c", *range(60)])
    assert groups[0] == groups[2]
    sizes = np.bincount(groups)
    assert len(sizes) == 20
    assert sizes.max() - sizes.min() <= 2
    assert len(set(grouped(range(7)))) == 7


def test_halves_are_balanced():
    """The variance of a mean over the halves is that of the mean."""
    prompts = np.arange(310).repeat(2)
    values = np.random.default_rng(0).normal(size=310)
    kept = halves(list(prompts))
    assert np.array_equal(kept[:, ::2], kept[:, 1::2])
    means = np.array([values[keep[::2]].mean() for keep in kept])
    groups = grouped(range(310), 31)
    of_groups = np.array([values[groups == one].mean() for one in range(31)])
    assert means.mean() == pytest.approx(values.mean())
    assert means.var() * 15 / 16 == pytest.approx(of_groups.var(ddof=1) / 31)
