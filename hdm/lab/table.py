"""The table of a lab: each setting's results minus its reference's at the same seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hdm.lab.cell_results import Result, Results
from hdm.lab.cost import Cost
from hdm.lab.grid import Comparison, Grid
from hdm.scoring.metrics import Score
from hdm.statistics import Interval

Costs = Mapping[str, Mapping[str, Cost]]  # by comparison and setting
NONE = "–"


@dataclass(frozen=True)
class Row:
    """One setting of a comparison. Differences are setting minus reference, seed by seed.

    Args:
        comparison, setting: their names.
        is_reference: whether the other settings are compared with it; it has means but no
            differences.
        num_seeds: number of seeds that both have finished.
        num_images: images seen by the end.
        cost: time of an image relative to the reference's, averaged over the training; None: not
            measured.
        loss, scores: means of the held-out loss and of the scores by name, at the end.
        loss_at_equal_samples: difference at the end.
        loss_at_equal_time: difference when the faster of the two is done; None if the costs are not
            known.
        scores_at_equal_samples: differences at the end, by name.
    """

    comparison: str
    setting: str
    is_reference: bool
    num_seeds: int
    num_images: int
    cost: float | None
    loss: float | None
    scores: Mapping[str, float]
    loss_at_equal_samples: Interval | None
    loss_at_equal_time: Interval | None
    scores_at_equal_samples: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def table_rows(grid: Grid, results: Results, costs: Costs) -> list[Row]:
    """Rows for the finished cells whose reference is finished at the same seed."""
    rows = []
    for name, comparison in grid.comparisons.items():
        for setting in comparison.settings:
            mine = []
            theirs = []
            # Paired by seed: the same order and noise of training make the difference vary less.
            for seed in range(grid.seeds):
                cell = grid.cell(name, setting, seed)
                reference = grid.cell(name, comparison.reference, seed)
                if cell in results and reference in results:
                    mine.append(results[cell])
                    theirs.append(results[reference])
            if mine:
                cost = costs.get(name, {}).get(setting)
                rows.append(_row(name, setting, comparison, mine, theirs, cost))
    return rows


def _row(
    name: str,
    setting: str,
    comparison: Comparison,
    mine: Sequence[Result],
    theirs: Sequence[Result],
    cost: Cost | None,
) -> Row:
    reference = setting == comparison.reference
    total = min(mine[0].num_images, theirs[0].num_images)
    # Scores at the end of training: means, and differences from the reference at the same seed.
    scores = {}
    differences = {}
    for score in mine[0].scores:
        # Means over fewer trainings would not be comparable.
        if all(score in one.scores for one in (*mine, *theirs)):
            values = [one.scores[score].value for one in mine]
            others = [one.scores[score].value for one in theirs]
            scores[score] = statistics.fmean(values)
            if not reference:
                pairs = zip(values, others, strict=True)
                differences[score] = Interval.of([value - other for value, other in pairs])
    # Held-out losses, where they can be compared: after as many images, and after as much time.
    equal_samples = None
    equal_time = None
    if not reference and comparison.losses_compare:
        equal_samples = _difference(
            mine, theirs, lambda one: one.loss_at(total), lambda one: one.loss_at(total)
        )
        if cost is not None:
            # When the faster of the two is done, in units of the reference's training.
            time = min(1.0, cost.whole)
            equal_time = _difference(
                mine,
                theirs,
                lambda one: one.loss_at(total * cost.share_at(time)),
                lambda one: one.loss_at(total * time),
            )
    return Row(
        comparison=name,
        setting=setting,
        is_reference=reference,
        num_seeds=len(mine),
        num_images=mine[0].num_images,
        cost=cost.whole if cost else None,
        loss=_mean(one.loss_at(total) for one in mine),
        scores=scores,
        loss_at_equal_samples=equal_samples,
        loss_at_equal_time=equal_time,
        scores_at_equal_samples=differences,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return statistics.fmean(known)


def _difference(
    mine: Sequence[Result],
    theirs: Sequence[Result],
    read: Callable[[Result], float | None],
    read_other: Callable[[Result], float | None],
) -> Interval | None:
    differences = []
    for one, other in zip(mine, theirs, strict=True):
        value = read(one)
        other_value = read_other(other)
        if value is None or other_value is None:
            return None
        differences.append(value - other_value)
    return Interval.of(differences)


def to_markdown(grid: Grid, rows: Sequence[Row], results: Results) -> str:
    """The table, with explanations above and below it."""
    scores = _scores(results)
    titles = [
        "",
        "setting",
        "seeds",
        "images",
        "time an image",
        "held-out loss",
        "at equal time",
        *(name.replace("_", " ") for name in scores),
    ]
    lines = [_heading(grid, results), "", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    before = ""
    for row in rows:
        # The name stands only in the first row of a comparison.
        name = row.comparison if row.comparison != before else ""
        lines.append(f"| {' | '.join(_cells(row, scores, name))} |")
        before = row.comparison
    in_table = {row.comparison for row in rows}
    notes = []
    for name, comparison in grid.comparisons.items():
        text = _notes(comparison)
        if name in in_table and text:
            notes.append(f"- {name}: {text}")
    readings = [_reading(name, score) for name, score in scores.items()]
    return "\n".join([*lines, "", *READING, *readings, *notes]) + "\n"


READING = (
    (
        "First row of each comparison: the reference, its means. Other rows: difference from it at"
        " the same seed, mean and 95 % confidence interval (Student's t over the seeds of training;"
        " prompts are the same); **bold** where that excludes 0, as one figure in twenty does by"
        " chance."
    ),
    "",
    "- held-out loss: of the averaged weights when both have seen all images; less is better.",
    (
        "- at equal time: the same when the quicker of the two is done, read off the curves by the"
        " time an image takes, relative to the reference (steps in turns in one process, medians)."
    ),
)


def _scores(results: Results) -> dict[str, Score]:
    """One example of each score that any training has, in order."""
    scores: dict[str, Score] = {}
    for result in results.values():
        scores = {**result.scores, **scores}
    return scores


def _reading(name: str, score: Score) -> str:
    unit = ", in percentage points" if score.is_share else ""
    of = f"{score.group}: {score.label or name}" if score.group else score.label or name
    better = "more" if score.direction == "higher" else "less"
    return f"- {name.replace('_', ' ')}: {of}, at the end{unit}; {better} is better."


def _heading(grid: Grid, results: Results) -> str:
    scores = _scores(results).values()
    prompts = max((score.count for score in scores), default=0)
    done = len(results)
    of = "" if done == len(grid.cells()) else f" of {len(grid.cells())}"
    return (
        f"Lab `{grid.lab.name}`, built on `{grid.lab.pipeline}`: {done}{of} trainings, {grid.seeds}"
        f" seeds, {prompts} prompts each."
    )


def _cells(row: Row, scores: Mapping[str, Score], name: str) -> list[str]:
    cost = NONE if row.cost is None else f"{row.cost:.2f} ×"
    if row.is_reference:
        values = [NONE if row.loss is None else f"{row.loss:.4f}", ""]
        for key, score in scores.items():
            values.append(_value(score, row.scores[key]) if key in row.scores else NONE)
    else:
        values = [
            _formatted(row.loss_at_equal_samples, 1, 4),
            _formatted(row.loss_at_equal_time, 1, 4),
        ]
        for key, score in scores.items():
            values.append(_formatted(row.scores_at_equal_samples.get(key), *_scale(score)))
    return [name, row.setting, str(row.num_seeds), f"{row.num_images:,}", cost, *values]


def _value(score: Score, value: float) -> str:
    return f"{100 * value:.1f} %" if score.is_share else f"{value:.4f}"


def _scale(score: Score) -> tuple[float, int]:
    """The factor for a difference, and its number of digits."""
    return (100, 1) if score.is_share else (1, 4)


def _formatted(interval: Interval | None, scale: float, digits: int) -> str:
    if interval is None:
        return NONE
    text = f"{scale * interval.mean:+.{digits}f}"
    if interval.half is not None:
        text += f" ± {scale * interval.half:.{digits}f}"
    return f"**{text}**" if interval.excludes_zero else text


def _notes(comparison: Comparison) -> str:
    notes = [comparison.question, comparison.note]
    if not comparison.losses_compare:
        notes.append("losses of unlike latents or texts are not compared.")
    return " ".join(filter(None, notes))
