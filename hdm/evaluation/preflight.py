"""Find problems of the stage `evaluate` before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from hdm.errors import InputError, raised_by
from hdm.evaluation import embeddings
from hdm.evaluation.painting import image_size
from hdm.evaluation.prompts import check_held_out, check_prompts
from hdm.evaluation.settings import Pipeline
from hdm.generation.picture_files import check_sides
from hdm.models.autoencoder import pipeline_latent_shape
from hdm.models.components import is_named, locate, resolve
from hdm.models.devices import check_device
from hdm.scoring import metrics
from hdm.store import Outputs


def preflight(pipeline: Pipeline, made: Outputs) -> Iterator[InputError]:
    """Report settings and models with which generating or measuring would fail.

    Args:
        made: finished outputs; the counts of `filter` tell whether there are pictures to compare
            with.
    """
    yield from raised_by(
        partial(check_prompts, pipeline),
        partial(check_held_out, pipeline, made.get("filter")),
        partial(check_device, pipeline.evaluate.device, "evaluate.device"),
        partial(_text_encoder_is_here, pipeline),
        partial(_size_fits, pipeline),
    )
    if is_named(pipeline.components, "contrastive"):
        yield from embeddings.preflight(pipeline)
    for metric in metrics.applying(pipeline):
        yield from metric.preflight(pipeline)


def _text_encoder_is_here(pipeline: Pipeline) -> None:
    locate(resolve(pipeline.components).need("text_encoder"))


def _size_fits(pipeline: Pipeline) -> None:
    shape = pipeline_latent_shape(pipeline)
    if shape is not None and pipeline.evaluate.size is not None:
        unit = shape.downscale * pipeline.train.model.patch_size
        check_sides(*image_size(pipeline), unit, "evaluate.size")
