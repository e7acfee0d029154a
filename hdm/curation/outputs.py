"""The outputs of the stage `filter`: what pixels say, what each model says, and the decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from hdm.config import Pipeline
from hdm.curation import decide, embed, measure, rate, score
from hdm.curation.criteria import added
from hdm.errors import InputError
from hdm.models.components import resolve
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
    if has_contrastive(pipeline):
        yield FilterOutput(embed.NAME, ("download",), embed.identify, embed.make)
        if _names(pipeline, "aesthetic_head"):
            yield FilterOutput(rate.NAME, (embed.NAME,), rate.identify, rate.make)
    for criterion in added(pipeline.filter):
        yield FilterOutput(
            f"filter.{criterion.name}",
            ("download",),
            partial(score.identify, criterion=criterion),
            partial(score.make, criterion=criterion),
        )


def has_contrastive(pipeline: Pipeline) -> bool:
    """Whether the pipeline makes embeddings."""
    return _names(pipeline, "contrastive")


def _names(pipeline: Pipeline, component: str) -> bool:
    try:
        return getattr(resolve(pipeline.components), component) is not None
    except InputError:  # the folder of components is missing, which the stage's preflight tells
        return False
