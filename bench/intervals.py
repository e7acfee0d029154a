"""How often intervals hold the truth, and what comparisons of simulated runs find.

Coverage: of many evaluations of one made-up world, how often an interval of 95 % holds their mean;
and by how much the standard error that it tells differs from the spread of the evaluations.
Comparisons: of pairs of equal runs, how many have any verdict after Holm; of pairs that truly
differ by twice the smallest difference that a first pair is told to detect, how many show it.

Examples:
  python bench/intervals.py
  python bench/intervals.py --only comparisons --pairs 200
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small products: threads would only wait
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from machine import add_number, add_only, machine, parser_of

from hdm.distances.frechet import extrapolated_replicates, frechet_replicates
from hdm.distances.kernel import kernel_distance
from hdm.distances.neighbours import density_and_coverage, precision_and_recall
from hdm.evaluation.comparison import Comparison, Difference, compare, judged
from hdm.statistics import Estimate, mean_of
from tests.distances.worlds import World, coverage, made
from tests.evaluation.made_runs import made_runs

ROWS = ("coverage", "comparisons")
KINDS = {"mean": "prompts.clip_score", "kernel": "distances.kernel", "frechet": "distances.frechet"}
FIRST_PAIR = 1_000_003
Measures = Callable[[World], dict[str, Estimate]]


def sides(world: World, model: int = 0) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """What distances take."""
    prompts = list(world.prompts), list(world.reference_prompts)
    return world.models[model], world.reference, *prompts


def means(world: World) -> dict[str, Estimate]:
    """Of a skewed number of each picture, and of its difference between two models."""
    one, two = (np.exp(rows[:, 1] / 2) for rows in world.models)
    found = {
        "mean": mean_of(one, world.prompts),
        "mean, difference": mean_of(two - one, world.prompts),
    }
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def kernels(world: World) -> dict[str, Estimate]:
    """Of one model, and of two."""
    _, reference, prompts, others = sides(world)
    one = [world.models[0]]
    return {
        "kernel": kernel_distance(one, reference, prompts, others),
        "kernel, difference": kernel_distance(world.models, reference, prompts, others),
    }


def frechet(world: World) -> dict[str, Estimate]:
    """Of one model, and of two."""
    one, two = (frechet_replicates(*sides(world, model)) for model in (0, 1))
    return {"Fréchet": one.estimate(), "Fréchet, difference": (one - two).estimate()}


def extrapolated(world: World) -> dict[str, Estimate]:
    """Of one model."""
    return {"Fréchet, extrapolated": extrapolated_replicates(*sides(world)).estimate()}


def neighbours(world: World) -> dict[str, Estimate]:
    """Of one model, and of two."""
    one, two = (
        {**precision_and_recall(*sides(world, model)), **density_and_coverage(*sides(world, model))}
        for model in (0, 1)
    )
    found = {}
    for name, replicates in one.items():
        found[name] = replicates.estimate()
        found[f"{name}, difference"] = (replicates - two[name]).estimate()
    return found


WORLDS: Sequence[tuple[str, Measures, dict[str, int], int]] = (
    ("40 prompts of 3 pictures", means, {"num_prompts": 40, "repeats": 3}, 1),
    ("300 prompts", means, {"num_prompts": 300}, 1),
    ("100 prompts of 2, d = 8", kernels, {"num_prompts": 100, "repeats": 2}, 1),
    ("300 prompts, d = 64", kernels, {"num_prompts": 300, "size": 64}, 1),
    ("100 prompts of 2, d = 8", frechet, {"num_prompts": 100, "repeats": 2}, 1),
    ("1,000 prompts, d = 64", frechet, {"num_prompts": 1000, "size": 64}, 2),
    ("1,000 prompts, d = 16", extrapolated, {"num_prompts": 1000, "size": 16}, 4),
    ("100 prompts of 2, d = 4", neighbours, {"num_prompts": 100, "repeats": 2, "size": 4}, 2),
    ("200 prompts, d = 16", neighbours, {"num_prompts": 200, "size": 16}, 2),
)
"""Name of a world, what is measured in it, its size, and one in how many evaluations is made."""


def coverages(num_worlds: int) -> Iterator[str]:
    """Lines of a table."""
    yield "| number | world | evaluations | told / true error | coverage |"
    yield "|---|---|---|---|---|"
    for title, measures, size, every in WORLDS:
        found: dict[str, list[Estimate]] = {}
        for seed in range(num_worlds // every):
            world = made(seed, shifts=(1.0, 1.3), **size)
            for name, estimate in measures(world).items():
                found.setdefault(name, []).append(estimate)
        for name, estimates in found.items():
            spread = np.std([one.value for one in estimates], ddof=1)
            told = np.sqrt(np.mean([(one.error or 0) ** 2 for one in estimates]))
            share = coverage(estimates)
            yield f"| {name} | {title} | {len(estimates)} | {told / spread:.2f} | {share:.1%} |"


def asked(seed: int, **apart: float) -> Comparison:
    """A comparison of two made-up runs."""
    return judged(
        [compare(*made_runs(seed, better=apart.get("better", 0), farther=apart.get("farther", 0)))]
    )[0]


def of_kind(comparison: Comparison, kind: str) -> Difference:
    """One of its measures."""
    return next(one for one in comparison.differences if one.name == KINDS[kind])


def farther_by(kind: str, wanted: float) -> float:
    """How much farther the second's pictures lie, where distances then differ by `wanted`."""
    low, high = 0.0, 4.0
    for _ in range(8):
        middle = (low + high) / 2
        differences = [of_kind(asked(FIRST_PAIR + n, farther=middle), kind) for n in range(12)]
        if np.mean([one.apart.value for one in differences]) < wanted:
            low = middle
        else:
            high = middle
    return high


def comparisons(num_pairs: int) -> Iterator[str]:
    """Lines of text."""
    alarms = 0
    for seed in range(num_pairs):
        comparison = asked(seed)
        alarms += comparison.count("better") + comparison.count("worse") > 0
    yield f"equal runs with any verdict: {alarms} of {num_pairs}"
    first = asked(FIRST_PAIR)
    for kind in KINDS:
        one = of_kind(first, kind)
        detectable = one.apart.detectable(one.num_questions)
        assert detectable is not None
        step = 2 * detectable
        apart = {"better": step} if kind == "mean" else {"farther": farther_by(kind, step)}
        found = 0
        for seed in range(num_pairs):
            found += of_kind(asked(seed, **apart), kind).verdict in ("better", "worse")
        yield f"{kind}, twice the detectable {detectable:.3g} apart: {found} of {num_pairs} found"


def main() -> None:
    parser = parser_of(__doc__, "")
    add_only(parser, ROWS)
    add_number(parser, "--worlds", 1000, "evaluations of each world")
    add_number(parser, "--pairs", 200, "pairs of runs")
    options: argparse.Namespace = parser.parse_args()
    print(machine())
    for name in options.only or ROWS:
        lines = coverages(options.worlds) if name == "coverage" else comparisons(options.pairs)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
