"""Metrics. Each is an output of its own, `evaluate.<name>`; most are made from `evaluate.images`.

Adding a metric, or changing one, therefore generates no image again. Report, headline, lab and
`hdm run --json` show whatever scores there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hdm.errors import InputError
from hdm.statistics import WILSON, Estimate, Share
from hdm.store import Identity, Output, Outputs, Store

Pipeline = Any
"""`hdm.config.Pipeline`, of which each metric and each judge reads another part. What composes all
settings lies above this package."""

PREFIX = "evaluate."
IMAGES = f"{PREFIX}images"
EMBEDDINGS = f"{PREFIX}embeddings"
"""Of the images and of real pictures, where the pipeline names a contrastive model."""
SEEN = (IMAGES, EMBEDDINGS)
"""Outputs of the evaluation that are no scores themselves."""
SCHEMA = 2
AVAILABLE = (*SEEN, "download", "filter.measures", "filter.contrastive", "filter", "caption")
"""Outputs that a metric may read."""
Direction = Literal["higher", "lower"]
SCORES = "scores.json"
DETAILS = "details.json"


@dataclass(frozen=True)
class Score:
    """One number with its interval.

    Args:
        name: unique within its metric.
        value: the number itself.
        low, high: its 95 % interval; None if it has none.
        count: number of images, or of pairs of images, that it is measured on.
        direction: which values are better.
        is_share: whether it is a share, shown in per cent.
        headline: whether it is among the few that a line of text and the lab's table show.
        label: the name shown to people; "": the name.
        group: title above scores of the same kind in the report.
        note: remark beside it in a line of text.
        estimator: how the interval was found.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    count: int
    direction: Direction
    is_share: bool = False
    headline: bool = True
    label: str = ""
    group: str = ""
    note: str = ""
    estimator: str = ""

    @classmethod
    def of_share(cls, name: str, share: Share, **more: Any) -> Score:
        """The score of a share that should be high."""
        low, high = share.interval
        more = {"estimator": WILSON, **more}
        return cls(name, share.value, low, high, share.total, "higher", is_share=True, **more)

    @classmethod
    def of_estimate(
        cls, name: str, found: Estimate, count: int, direction: Direction, **more: Any
    ) -> Score:
        """The score of an estimate from `count` images; a share's interval ends at 0 and 1."""
        low = found.low
        high = found.high
        if more.get("is_share") and low is not None and high is not None:
            low = max(0.0, low)
            high = min(1.0, high)
        more = {"estimator": found.estimator, **more}
        return cls(name, found.value, low, high, count, direction, **more)


@dataclass(frozen=True)
class Table:
    """A table for the report: the first cell of a row names it, the others are numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Measured:
    """A metric's result.

    Args:
        scores: the numbers.
        tables: shown instead of a plain list of the scores that are not shares.
        notes: sentences below them.
        marks: by set of prompts, for each image: question → whether it is right.
        details: anything else worth reading; plain JSON values.
    """

    scores: Sequence[Score]
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    marks: Mapping[str, Sequence[Mapping[str, bool]]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def _always(_: Pipeline) -> bool:
    return True


def _no_weights(_: Pipeline) -> Mapping[str, str]:
    return {}


def _no_problems(_: Pipeline) -> Iterator[InputError]:
    return iter(())


@dataclass(frozen=True)
class Metric:
    """A way to score generated images, or the data that they come from.

    Args:
        name: its output is `evaluate.<name>`.
        needs: names of the outputs that it reads, out of AVAILABLE. It is left out for pipelines
            that lack one of them.
        identify: what the scores depend on besides these outputs: a version, settings. Plain JSON
            values.
        measure: measures, given the outputs by name.
        title: title in the report; "": the name.
        about: what it measures, in a sentence or two.
        applies: whether a pipeline is measured with it.
        weights: sha256 of the weights it reads, by the component's name.
        preflight: problems of the settings or of this machine that keep it from working.
        flops: operations for one generated image, two a multiplication and addition, for
            `hdm plan`; None: not known.
    """

    name: str
    needs: tuple[str, ...]
    identify: Callable[[Pipeline], Mapping[str, Any]]
    measure: Callable[[Pipeline, Outputs], Measured]
    title: str = ""
    about: str = ""
    applies: Callable[[Pipeline], bool] = _always
    weights: Callable[[Pipeline], Mapping[str, str]] = _no_weights
    preflight: Callable[[Pipeline], Iterator[InputError]] = _no_problems
    flops: float | None = None


METRICS: dict[str, Metric] = {}
"""By name, in order of registration."""


def register(metric: Metric) -> None:
    """Measure this in every evaluation from now on.

    Raises:
        ValueError: the name is taken, or `needs` names an output that metrics cannot read.
    """
    # The names of what metrics read are taken too.
    if metric.name in METRICS or output_name(metric) in SEEN:
        raise ValueError(f"a metric called {metric.name!r} is registered already")
    # Other outputs, such as training's, are not handed to metrics.
    if unknown := set(metric.needs) - set(AVAILABLE):
        raise ValueError(f"metric {metric.name!r} needs {sorted(unknown)}; use {AVAILABLE}")
    METRICS[metric.name] = metric


def output_name(metric: Metric) -> str:
    return f"{PREFIX}{metric.name}"


def applying(pipeline: Pipeline) -> list[Metric]:
    """The metrics that apply to a pipeline, by its settings."""
    return [metric for metric in METRICS.values() if metric.applies(pipeline)]


def identify(pipeline: Pipeline, inputs: Mapping[str, str], metric: Metric) -> Identity:
    """What the scores of a metric depend on."""
    weights = dict(metric.weights(pipeline))
    config = dict(metric.identify(pipeline))
    return Identity(output_name(metric), SCHEMA, config, dict(inputs), weights)


def make(
    pipeline: Pipeline,
    identity: Identity,
    inputs: Outputs,
    store: Store,
    metric: Metric,
) -> Output:
    """Measure.

    Returns:
        An output of `scores.json`, which the report shows, and `details.json` with marks and
        details. Its summary holds each score by name.
    """
    measured = metric.measure(pipeline, inputs)
    scores = {score.name: asdict(score) for score in measured.scores}
    shown = {
        "scores": scores,
        "tables": list(map(asdict, measured.tables)),
        "notes": list(measured.notes),
    }
    with store.draft(identity) as draft:
        # A file that an interrupted run has finished is kept: the same inputs give the same scores.
        if not draft.has(SCORES):
            draft.write_json(SCORES, shown)
        if not draft.has(DETAILS):
            # Apart from the scores, which the report reads: marks and details may be long.
            marks = {name: list(of_set) for name, of_set in measured.marks.items()}
            draft.write_json(DETAILS, {"marks": marks, **measured.details})
        return draft.commit(scores)


@dataclass(frozen=True)
class Finding:
    """A metric's output as it was read: scores by name, tables, notes, marks by set, details."""

    name: str
    scores: Mapping[str, Score]
    tables: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    details: Mapping[str, Any]

    @property
    def marks(self) -> Mapping[str, Sequence[Mapping[str, bool]]]:
        """By set of prompts, for each image: question → whether it is right."""
        marks: Mapping[str, Sequence[Mapping[str, bool]]] = self.details["marks"]
        return marks

    @property
    def title(self) -> str:
        """The metric's title where it is registered, else its name."""
        # A metric of a package that is not installed here still has its scores in the store.
        metric = METRICS.get(self.name)
        return (metric.title if metric else "") or self.name.replace("_", " ").capitalize()

    @property
    def about(self) -> str:
        """What it measures, where it is registered."""
        metric = METRICS.get(self.name)
        return metric.about if metric else ""

    @property
    def sees_images(self) -> bool:
        """Whether it measures generated images, not the data alone."""
        metric = METRICS.get(self.name)
        return metric is None or not set(SEEN).isdisjoint(metric.needs)


def read_finding(output: Output) -> Finding:
    """Read a metric's output."""
    shown = json.loads(output.file(SCORES).read_bytes())
    details = json.loads(output.file(DETAILS).read_bytes())
    scores = {name: Score(**values) for name, values in shown["scores"].items()}
    name = output.name.removeprefix(PREFIX)
    return Finding(name, scores, shown["tables"], shown["notes"], details)


def is_measured(name: str) -> bool:
    """Whether an output of this name holds scores."""
    return name.startswith(PREFIX) and name not in SEEN


def scores_of(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scores by metric and name, of all metrics among some outputs.

    Args:
        summaries: output's name → its summary.
    """
    found = {}
    for name, summary in summaries.items():
        if is_measured(name):
            found[name.removeprefix(PREFIX)] = dict(summary)
    return found


def headlines(measured: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The headline scores by name. A name that occurs twice gets its metric's name in front.

    Args:
        measured: as `scores_of` gives it.
    """
    headline_scores: dict[str, Any] = {}
    for metric, scores in measured.items():
        for name, score in scores.items():
            if score["headline"]:
                # Names are unique only within a metric.
                headline_scores[f"{metric}.{name}" if name in headline_scores else name] = score
    return headline_scores
