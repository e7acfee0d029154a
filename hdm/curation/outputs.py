"""The outputs of the stage `filter`: what pixels say, what each model says, and the decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from hdm.config import Pipeline
from hdm.curation import decide, embed, measure, rate, score
from hdm.curation.criteria import added
from hdm.models.components import is_named
from hdm.store import Identity, Output, Store


@dataclass(frozen=True)
class FilterOutput:
    """One output of the stage: its name, its inputs, how to identify and how to make it."""

    name: str
    inputs: tuple[str, ...]
    identify: Callable[[Pipeline, Mapping[str, str]], Identity]
    make: Callable[[Pipeline, Identity, Mapping[str, Output], Store], Output]


def filter_outputs(pipeline: Pipeline) -> list[FilterOutput]:
    """Every output, each after its inputs; the decision is the last."""
    found = list(_measured(pipeline))
    inputs = ("download", *(output.name for output in found))
    return [*found, FilterOutput("filter", inputs, decide.identify, decide.make)]


def _measured(pipeline: Pipeline) -> Iterator[FilterOutput]:
    yield FilterOutput(measure.NAME, ("download",), measure.identify, measure.make)
    if is_named(pipeline.components, "contrastive"):
        yield FilterOutput(embed.NAME, ("download",), embed.identify, embed.make)
        if is_named(pipeline.components, "aesthetic_head"):
            yield FilterOutput(rate.NAME, (embed.NAME,), rate.identify, rate.make)
    for criterion in added(pipeline.filter):
        yield FilterOutput(
            f"filter.{criterion.name}",
            ("download",),
            partial(score.identify, criterion=criterion),
            partial(score.make, criterion=criterion),
        )
