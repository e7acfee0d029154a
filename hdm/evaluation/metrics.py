"""Metrics of generated images. Each is an output of its own, `evaluate.<name>`, made from `evaluate.images`.

Adding a metric, or changing one, therefore generates no image again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hdm.config import Pipeline
from hdm.evaluation.images import NAME as IMAGES
from hdm.store import Identity, Output, Store

EVALUATE = "evaluate"
SCHEMA = 1
AVAILABLE = ("download", "filter.measures", "filter.contrastive", "filter", "caption")
"""Outputs that a metric may read besides the images."""
SCORES = "scores.json"


@dataclass(frozen=True)
class Score:
    """One number.

    Args:
        name: unique within its metric.
        value: the number itself.
        low, high: its 95 % interval; None where there is none.
        count: number of images, or pairs of them, that it is measured on.
        direction: which values are better.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    count: int
    direction: Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """A way to score generated images.

    Args:
        name: its output is `evaluate.<name>`.
        needs: names of the outputs, of AVAILABLE, that it reads besides `evaluate.images`. Pipelines that
            do not make one of them are not measured with it.
        identify: what the scores depend on besides these outputs: a version, settings, hashes of weights. Plain JSON values.
        measure: the scores, given the outputs by name.
    """

    name: str
    needs: tuple[str, ...]
    identify: Callable[[Pipeline], Mapping[str, Any]]
    measure: Callable[[Pipeline, Mapping[str, Output]], Sequence[Score]]


METRICS: dict[str, Metric] = {}
"""By name, in order of registration."""


def register(metric: Metric) -> None:
    """Measure this in every evaluation from now on.

    Raises:
        ValueError: the name is taken, or `needs` names an output that metrics cannot read.
    """
    if metric.name in METRICS or output_name(metric) == IMAGES:
        raise ValueError(f"a metric called {metric.name!r} is registered already")
    if unknown := set(metric.needs) - set(AVAILABLE):
        raise ValueError(f"metric {metric.name!r} needs {sorted(unknown)}; use {AVAILABLE}")
    METRICS[metric.name] = metric


def output_name(metric: Metric) -> str:
    return f"{EVALUATE}.{metric.name}"


def identify(pipeline: Pipeline, inputs: Mapping[str, str], metric: Metric) -> Identity:
    """What the scores of a metric depend on."""
    return Identity(output_name(metric), SCHEMA, dict(metric.identify(pipeline)), dict(inputs))


def make(
    pipeline: Pipeline,
    identity: Identity,
    inputs: Mapping[str, Output],
    store: Store,
    metric: Metric,
) -> Output:
    """Measure; the summary holds each score by name."""
    scores = {score.name: asdict(score) for score in metric.measure(pipeline, inputs)}
    with store.draft(identity) as draft:
        if not draft.has(SCORES):
            draft.write_json(SCORES, scores)
        return draft.commit(scores)


def scores_of(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scores by metric and name, of all metrics among some outputs.

    Args:
        summaries: output's name → its summary.
    """
    prefix = f"{EVALUATE}."
    return {
        name.removeprefix(prefix): dict(summary)
        for name, summary in summaries.items()
        if name.startswith(prefix) and name != IMAGES
    }
