"""The outputs of the stage `filter`: measures of pixels, scores of each model, and the decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from hdm.curation import decide, embed, rate
from hdm.curation.criteria import added
from hdm.curation.embed import Embeddings
from hdm.curation.looking import Look
from hdm.curation.measure import Measures
from hdm.curation.score import Scores
from hdm.curation.settings import Pipeline
from hdm.models.components import is_named
from hdm.store import Identity, Output, Outputs, Store


@dataclass(frozen=True)
class FilterOutput:
    """One output of the stage: its name, its inputs, how to identify and how to make it."""

    name: str
    inputs: tuple[str, ...]
    identify: Callable[[Pipeline, Mapping[str, str]], Identity]
    make: Callable[[Pipeline, Identity, Outputs, Store], Output]


def filter_outputs(pipeline: Pipeline) -> list[FilterOutput]:
    """Every output, each after its inputs; the decision is the last."""
    outputs = list(_inputs_of_decision(pipeline))
    inputs = ("download", *(output.name for output in outputs))
    return [*outputs, FilterOutput("filter", inputs, decide.identify, decide.make)]


def _inputs_of_decision(pipeline: Pipeline) -> Iterator[FilterOutput]:
    looks: list[Look] = [Measures()]
    if is_named(pipeline.components, "contrastive"):
        looks.append(Embeddings())
    looks += [Scores(criterion) for criterion in added(pipeline.filter)]
    for number, look in enumerate(looks):
        # Later looks that are missing too are made from the same decoded pictures.
        make = partial(look.make, also=looks[number + 1 :])
        yield FilterOutput(look.name, ("download",), look.identify, make)
        if look.name == embed.NAME and is_named(pipeline.components, "aesthetic_head"):
            yield FilterOutput(rate.NAME, (embed.NAME,), rate.identify, rate.make)
