"""The outputs of the stage `filter`: measures of pixels, scores of each model, and the decision."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

from hdm.curation import decide, embed, rate
from hdm.curation.criteria import added
from hdm.curation.embed import Embeddings
from hdm.curation.looking import Look
from hdm.curation.measure import Measures
from hdm.curation.score import Scores
from hdm.curation.settings import Pipeline
from hdm.models.components import is_named
from hdm.stage_work import OutputStep


def filter_outputs(pipeline: Pipeline, before: Collection[str] = ()) -> list[OutputStep[Pipeline]]:
    """Every output, each after its inputs; the decision is the last."""
    outputs = list(_inputs_of_decision(pipeline))
    inputs = ("download", *(output.name for output in outputs))
    return [*outputs, OutputStep("filter", inputs, decide.identify, decide.make)]


def _inputs_of_decision(pipeline: Pipeline) -> Iterator[OutputStep[Pipeline]]:
    looks: list[Look] = [Measures()]
    if is_named(pipeline.components, "contrastive"):
        looks.append(Embeddings())
    looks += [Scores(criterion) for criterion in added(pipeline.filter)]
    for number, look in enumerate(looks):
        # Later looks that are missing too are made from the same decoded pictures.
        make = partial(look.make, also=looks[number + 1 :])
        size = look.size if isinstance(look, Scores) else None
        yield OutputStep(look.name, ("download",), look.identify, make, size)
        if look.name == embed.NAME and is_named(pipeline.components, "aesthetic_head"):
            yield OutputStep(rate.NAME, (embed.NAME,), rate.identify, rate.make)
