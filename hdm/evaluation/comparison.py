"""Compare two runs, prompt by prompt and seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hdm.distances.frechet import can_fit, frechet_distance, frechet_replicates
from hdm.distances.jackknife import HALVED, Replicates
from hdm.distances.kernel import kernel_distance
from hdm.distances.neighbours import density_and_coverage, precision_and_recall
from hdm.errors import InputError
from hdm.evaluation.compared_runs import ALL, COSINE, Asked, MeasuredRun, MeasuredSet
from hdm.evaluation.contrastive_scores import comparable, prompts_of
from hdm.evaluation.embeddings import Compared
from hdm.evaluation.real import normal_prompt
from hdm.scoring.metrics import Direction
from hdm.statistics import Estimate, holm, mean_of

Verdict = Literal["better", "worse", "no difference shown", "not judged"]
LEVEL = 0.05
FAR_TOO_MANY = 1000
"""Times as many prompts would be no help to anybody."""
LIKE_REAL = "Likeness to real pictures"
LABELS = {ALL: "everything right", COSINE: "cosine of image and prompt"}


@dataclass(frozen=True)
class Difference:
    """One measure of two runs.

    Args:
        name: unique within the comparison.
        label, group: what is measured, and the title above it.
        direction: which values are better.
        is_share: whether values are shares, shown in per cent.
        first, second: the runs' values.
        apart: second minus first.
        num_pairs: pictures of each run that it rests on.
        floor: what real pictures reach, where that is known.
        bias: why it cannot be judged; "": it can.
        p_holm: p-value beside all others of the same comparison; None until `judged`.
        num_questions: that were asked at once.
    """

    name: str
    label: str
    group: str
    direction: Direction
    is_share: bool
    first: float
    second: float
    apart: Estimate
    num_pairs: int
    floor: float | None = None
    bias: str = ""
    p_holm: float | None = None
    num_questions: int = 1

    @property
    def can_tell(self) -> bool:
        """Whether it is to be judged, and there are prompts enough."""
        return self.apart.p_value is not None and not self.bias

    @property
    def is_same(self) -> bool:
        """Whether both runs have the same for each prompt."""
        return not self.apart.error and not self.apart.value

    @property
    def verdict(self) -> Verdict:
        """Of the second run."""
        if self.bias or self.p_holm is None:
            return "not judged"
        if self.p_holm >= LEVEL:
            return "no difference shown"
        return "better" if (self.apart.value > 0) == (self.direction == "higher") else "worse"

    @property
    def sentence(self) -> str:
        """The verdict with what it rests on."""
        if self.verdict == "not judged":
            return self.bias or "too few prompts to tell"
        if self.verdict != "no difference shown":
            return self.verdict
        shown = f"no difference shown with {self.apart.distinct:,} prompts"
        if self.is_same:
            return f"{shown}: both have the same for each"
        needed = self.apart.needed(self.num_questions)
        if needed is None:
            return shown
        if needed > FAR_TOO_MANY * self.apart.distinct:
            return f"{shown}, nor with {FAR_TOO_MANY:,} times as many"
        return f"{shown}; about {_rounded(needed):,} would be needed"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "label": self.label,
            "group": self.group,
            "direction": self.direction,
            "is_share": self.is_share,
            "first": self.first,
            "second": self.second,
            "floor": self.floor,
            "difference": self.apart.value,
            "low": self.apart.low,
            "high": self.apart.high,
            "estimator": self.apart.estimator,
            "p_value": self.apart.p_value,
            "p_holm": self.p_holm,
            "num_prompts": self.apart.distinct,
            "num_pairs": self.num_pairs,
            "detectable": self.apart.detectable(self.num_questions),
            "needed": self.apart.needed(self.num_questions),
            "verdict": self.verdict,
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Args:
        first, second: the runs; verdicts are of the second.
        differences: one for each measure.
        notes: what was left out, and why.
        pairs: set → rows of pictures of one prompt and seed, of the first run and of the second.
    """

    first: MeasuredRun
    second: MeasuredRun
    differences: Sequence[Difference]
    notes: Sequence[str]
    pairs: dict[str, list[tuple[int, int]]]

    def count(self, verdict: Verdict) -> int:
        """How many measures have this verdict."""
        return sum(one.verdict == verdict for one in self.differences)


def compare(first: MeasuredRun, second: MeasuredRun) -> Comparison:
    """Every measure that both runs have, of the pictures of equal prompts and seeds.

    Verdicts are not there yet: `judged` gives them, to all comparisons at once.

    Raises:
        InputError: they are one run, or have no prompt and seed in common, or nothing was measured
            of those.
    """
    if first.images.digest == second.images.digest:
        raise InputError(
            f"{first.name} and {second.name} are the same pictures",
            where=first.images.path,
            do="name two runs of different models or settings",
        )
    notes: list[str] = []
    pairs = {}
    for name, one in first.sets.items():
        other = second.sets.get(name)
        found = _paired(one.asked, other.asked) if other else []
        if found:
            pairs[name] = found
        total = max(len(one.asked), len(other.asked) if other else 0)
        if len(found) < total:
            notes.append(f"{one.title}: {len(found):,} of {total:,} pictures are of equal prompts.")
    if not pairs:
        raise InputError(
            f"{first.name} and {second.name} have no prompt with the same seed in common:"
            f" {_example(first)}, and {_example(second)}",
            do="give both the same evaluate.prompts, evaluate.num_images and evaluate.seed, and"
            " the same held-out pictures",
        )
    differences: list[Difference] = []
    for name, found in pairs.items():
        differences += _of_set(name, first.sets[name], second.sets[name], found)
    differences += _of_distances(first, second, notes)
    if not differences:
        raise InputError(
            f"nothing was measured of both {first.name} and {second.name}",
            do="run their pipelines to the end; a contrastive model measures any pictures"
            " (components.contrastive)",
        )
    return Comparison(first, second, differences, notes, pairs)


def judged(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with verdicts: 5 % of all such askings of equal runs raise any false alarm,
    however many measures and runs there are.
    """
    asked = {}
    for number, comparison in enumerate(comparisons):
        for one in comparison.differences:
            # Where both have the same for each prompt no alarm is possible, so that the others need
            # not be the surer for it (Tarone 1990, Biometrics 46:515).
            if one.can_tell and not one.is_same:
                assert one.apart.p_value is not None
                asked[f"{number} {one.name}"] = one.apart.p_value
    adjusted = holm(asked)
    results = []
    for number, comparison in enumerate(comparisons):
        differences = []
        for one in comparison.differences:
            p_holm = adjusted.get(f"{number} {one.name}", 1.0 if one.can_tell else None)
            differences.append(replace(one, p_holm=p_holm, num_questions=max(1, len(asked))))
        results.append(replace(comparison, differences=differences))
    return results


def _paired(one: Sequence[Asked], other: Sequence[Asked]) -> list[tuple[int, int]]:
    """The places of equal prompts and seeds."""
    there = {asked: place for place, asked in enumerate(other)}
    return [(place, there[asked]) for place, asked in enumerate(one) if asked in there]


def _example(run: MeasuredRun) -> str:
    prompt, seed = next(iter(run.sets.values())).asked[0]
    return f"{run.name} begins with {prompt!r} at seed {seed}"


def _of_set(
    name: str, one: MeasuredSet, other: MeasuredSet, pairs: Sequence[tuple[int, int]]
) -> Iterator[Difference]:
    rows = [row for row, _ in pairs]
    other_rows = [row for _, row in pairs]
    prompts = [normal_prompt(one.asked[row][0]) for row in rows]
    both: list[tuple[str, bool, Any, Any]] = []
    for question in one.shares:
        if question in other.shares:
            both.append((question, True, one.shares[question], other.shares[question]))
    for measure in one.numbers:
        if measure in other.numbers:
            both.append((measure, False, one.numbers[measure], other.numbers[measure]))
    for measure, is_share, values, other_values in both:
        first = np.array(values, np.float64)[rows]
        second = np.array(other_values, np.float64)[other_rows]
        apart = mean_of(second - first, prompts)
        assert apart is not None
        yield Difference(
            f"{name}.{measure}",
            LABELS.get(measure, measure),
            one.title,
            "higher",
            is_share,
            float(first.mean()),
            float(second.mean()),
            apart,
            len(pairs),
        )


def _of_distances(
    first: MeasuredRun, second: MeasuredRun, notes: list[str]
) -> Iterator[Difference]:
    one = first.compared
    other = second.compared
    if one is None or other is None:
        missing = " and ".join(run.name for run in (first, second) if run.compared is None)
        notes.append(
            f"Distances to real pictures are left out for lack of embeddings: {missing}. A run with"
            " a contrastive model (components.contrastive) and held-out pictures makes them."
        )
        return
    if not comparable(one) or not comparable(other):
        fewest = min(len(one.reference), len(other.reference))
        notes.append(
            f"Distances to real pictures are left out: {fewest:,} to compare with on either side."
            " They need pictures of two captions at least; raise filter.held_out."
        )
        return
    if not _same_sides(one, other):
        notes.append(
            "Distances to real pictures are left out: the runs were compared with different"
            " pictures, or by different models."
        )
        return
    captions, others = prompts_of(one)
    yield from _of_kernel(one, other, captions, others)
    if can_fit(one.generated, one.reference):
        yield _of_frechet(one, other, captions, others)
    else:
        notes.append(
            f"The Fréchet distance is left out: {len(one.generated):,} pictures on either side, in"
            f" {one.generated.shape[1]:,} dimensions. It needs more pictures than dimensions."
        )
    if min(len(set(captions)), len(set(others))) >= HALVED:
        yield from _of_neighbours(one, other, captions, others)
    else:
        notes.append(
            f"Precision, recall, density and coverage are left out: they need {HALVED} captions on"
            " either side."
        )


def _same_sides(one: Compared, other: Compared) -> bool:
    return (
        list(one.captions) == list(other.captions)
        and np.array_equal(one.reference, other.reference)
        and np.array_equal(one.real, other.real)
    )


def _of_kernel(
    one: Compared, other: Compared, captions: list[str], others: list[str]
) -> Iterator[Difference]:
    first, second, floor = (
        kernel_distance([rows], one.reference, captions, others).value
        for rows in (one.generated, other.generated, one.real)
    )
    both = [other.generated, one.generated]
    apart = kernel_distance(both, one.reference, captions, others)
    yield _distance("kernel", "kernel distance", "lower", first, second, apart, one, floor)


def _of_frechet(
    one: Compared, other: Compared, captions: list[str], others: list[str]
) -> Difference:
    first, second = (
        frechet_replicates(rows, one.reference, captions, others)
        for rows in (one.generated, other.generated)
    )
    apart = (second - first).estimate()
    floor = frechet_distance(one.real, one.reference)
    found = _distance(
        "frechet", "Fréchet distance", "lower", first.value, second.value, apart, one, floor
    )
    # Below twice its floor a distance tells more of the number of pictures than of a model.
    if floor > min(first.value, second.value) / 2:
        return replace(found, bias="mostly bias: the floor is more than half of it")
    return found


def _of_neighbours(
    one: Compared, other: Compared, captions: list[str], others: list[str]
) -> Iterator[Difference]:
    measures: tuple[Callable[..., dict[str, Replicates]], ...] = (
        precision_and_recall,
        density_and_coverage,
    )
    for measure in measures:
        first, second, floor = (
            measure(rows, one.reference, captions, others)
            for rows in (one.generated, other.generated, one.real)
        )
        for name, found in first.items():
            apart = (second[name] - found).estimate()
            values = (found.value, second[name].value)
            of_real = floor[name].value
            yield replace(
                _distance(name, name, "higher", *values, apart, one, of_real),
                is_share=name != "density",
            )


def _distance(
    name: str,
    label: str,
    direction: Direction,
    first: float,
    second: float,
    apart: Estimate,
    compared: Compared,
    floor: float,
) -> Difference:
    count = len(compared.generated)
    return Difference(
        f"distances.{name}", label, LIKE_REAL, direction, False, first, second, apart, count, floor
    )


def _rounded(count: int) -> int:
    """To two digits: it is no more certain than that."""
    return int(float(f"{count:.1e}"))
