"""The table of a lab: what each setting gives, less what its reference gives at the same seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hdm.demo.judge import QUESTIONS
from hdm.lab.cost import Cost
from hdm.lab.grid import Comparison, Grid
from hdm.lab.results import Result, Results
from hdm.statistics import Interval

Costs = Mapping[str, Mapping[str, Cost]]
"""By comparison and setting."""
NONE = "–"


@dataclass(frozen=True)
class Row:
    """One setting of a comparison. Differences are setting less reference, seed by seed.

    Args:
        comparison, setting: their names.
        is_reference: the others of the comparison are compared with it; its values are means, and it has no differences.
        num_seeds: that both have finished.
        num_images: seen by the end.
        cost: time of an image, on average over the training, over the reference's; None: not measured.
        loss, right: means of the held-out loss and of the share of prompts right by question, at the end.
        loss_at_equal_samples: difference at the end.
        loss_at_equal_time: difference when the quicker of the two is done; None where the costs are not known.
        right_at_equal_samples: differences at the end, by question.
    """

    comparison: str
    setting: str
    is_reference: bool
    num_seeds: int
    num_images: int
    cost: float | None
    loss: float | None
    right: Mapping[str, float]
    loss_at_equal_samples: Interval | None
    loss_at_equal_time: Interval | None
    right_at_equal_samples: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def table_rows(grid: Grid, results: Results, costs: Costs) -> list[Row]:
    """The rows of every comparison whose reference has finished at some seed, as far as cells are finished."""
    rows = []
    for name, comparison in grid.comparisons.items():
        found = {
            setting: _of_setting(grid, results, name, setting) for setting in comparison.settings
        }
        for setting, by_seed in found.items():
            shared = [seed for seed in by_seed if seed in found[comparison.reference]]
            if shared:
                mine = [by_seed[seed] for seed in shared]
                theirs = [found[comparison.reference][seed] for seed in shared]
                rows.append(
                    _row(name, setting, comparison, mine, theirs, costs.get(name, {}).get(setting))
                )
    return rows


def _of_setting(grid: Grid, results: Results, comparison: str, setting: str) -> dict[int, Result]:
    cells = ((seed, grid.cell(comparison, setting, seed)) for seed in range(grid.seeds))
    return {seed: results[cell] for seed, cell in cells if cell in results}


def _row(
    name: str, setting: str, comparison: Comparison, mine: Sequence[Result], theirs: Sequence[Result], cost: Cost | None
) -> Row:  # fmt: skip
    reference, total = (
        setting == comparison.reference,
        min(mine[0].num_images, theirs[0].num_images),
    )
    questions = [
        question for question in QUESTIONS if all(question in one.right for one in (*mine, *theirs))
    ]
    equal_samples = equal_time = None
    if not reference and comparison.losses_compare:
        equal_samples = _difference(
            mine, theirs, lambda one: one.loss_at(total), lambda one: one.loss_at(total)
        )
        if cost is not None:
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
        right={question: statistics.fmean(one.right[question] for one in mine) for question in questions},
        loss_at_equal_samples=equal_samples,
        loss_at_equal_time=equal_time,
        right_at_equal_samples={} if reference else {
            question: Interval.of([one.right[question] - other.right[question] for one, other in zip(mine, theirs, strict=True)])
            for question in questions
        },
    )  # fmt: skip


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return (
        None if None in known else statistics.fmean(value for value in known if value is not None)
    )


def _difference(
    mine: Sequence[Result],
    theirs: Sequence[Result],
    read: Callable[[Result], float | None],
    read_other: Callable[[Result], float | None],
) -> Interval | None:
    pairs = [(read(one), read_other(other)) for one, other in zip(mine, theirs, strict=True)]
    known = [one - other for one, other in pairs if one is not None and other is not None]
    return Interval.of(known) if len(known) == len(pairs) else None


def to_markdown(grid: Grid, rows: Sequence[Row], results: Results) -> str:
    """The table, with what a reader has to know above and below it."""
    titles = [
        "",
        "setting",
        "seeds",
        "images",
        "time an image",
        "held-out loss",
        "at equal time",
        *QUESTIONS,
    ]
    lines = [_heading(grid, results), "", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    before = ""
    for row in rows:
        lines.append(
            f"| {' | '.join(_cells(row, row.comparison if row.comparison != before else ''))} |"
        )
        before = row.comparison
    shown = {row.comparison for row in rows}
    notes = [
        f"- {name}: {told}"
        for name, one in grid.comparisons.items()
        if name in shown
        for told in [_notes(one)]
        if told
    ]
    return "\n".join([*lines, "", *READING, *notes]) + "\n"


READING = (
    "First row of each comparison: the reference, its means. Other rows: difference from it at the same seed, mean and 95 % confidence "
    "interval (Student's t over the seeds of training; prompts are the same); **bold** where that excludes 0, as one figure in twenty does "
    "by chance.",
    "",
    "- held-out loss: of the averaged weights when both have seen all images; less is better.",
    "- at equal time: the same when the quicker of the two is done, read off the curves by the time an image takes, relative to "
    "the reference (steps in turns in one process, medians).",
    "- colour, place, kind: share of prompts of one object for which that is right, at the end, in percentage points; more is better.",
)


def _heading(grid: Grid, results: Results) -> str:
    prompts = max((result.num_prompts for result in results.values()), default=0)
    done = len(results)
    of = "" if done == len(grid.cells()) else f" of {len(grid.cells())}"
    return f"Lab `{grid.lab.name}`, built on `{grid.lab.pipeline}`: {done}{of} trainings, {grid.seeds} seeds, {prompts} prompts each."


def _cells(row: Row, name: str) -> list[str]:
    cost = NONE if row.cost is None else f"{row.cost:.2f} ×"
    if row.is_reference:
        measured = [NONE if row.loss is None else f"{row.loss:.4f}", ""]
        measured += [
            f"{100 * row.right[question]:.1f} %" if question in row.right else NONE
            for question in QUESTIONS
        ]
    else:
        measured = [_told(row.loss_at_equal_samples, 1, 4), _told(row.loss_at_equal_time, 1, 4)]
        measured += [
            _told(row.right_at_equal_samples.get(question), 100, 1) for question in QUESTIONS
        ]
    return [name, row.setting, str(row.num_seeds), f"{row.num_images:,}", cost, *measured]


def _told(found: Interval | None, scale: float, digits: int) -> str:
    if found is None:
        return NONE
    text = f"{scale * found.mean:+.{digits}f}" + (
        "" if found.half is None else f" ± {scale * found.half:.{digits}f}"
    )
    return f"**{text}**" if found.excludes_zero else text


def _notes(comparison: Comparison) -> str:
    unlike = (
        "" if comparison.losses_compare else "losses of unlike latents or texts are not compared."
    )
    return " ".join(filter(None, [comparison.question, comparison.note, unlike]))
