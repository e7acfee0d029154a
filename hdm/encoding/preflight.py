"""Find problems of the stage `encode` before anything is made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from hdm.encoding import features, text, tokens
from hdm.encoding.latents import check_resolution
from hdm.encoding.settings import Pipeline
from hdm.errors import InputError, raised_by
from hdm.models.autoencoder import LatentShape, pipeline_latent_shape
from hdm.models.components import resolve
from hdm.models.devices import check_device
from hdm.models.text_encoder import check_text_width, text_width
from hdm.models.vision import vision_sizes
from hdm.store import Outputs


def preflight(pipeline: Pipeline, made: Outputs) -> Iterator[InputError]:
    """Report devices that do not exist, and components that are missing or do not fit the model or
    its resolutions.
    """
    encode = pipeline.encode
    for name in encode.device.split(","):
        yield from raised_by(partial(check_device, name.strip(), "encode.device"))
    # `identify` hashes the models and needs no inputs, so it finds those that are missing.
    yield from raised_by(partial(tokens.identify, pipeline, {}))
    try:
        shape = pipeline_latent_shape(pipeline)
    except InputError as error:
        yield error
    else:
        # The shape is None if the configuration does not record it; the stage itself then checks.
        yield from _misfits(shape, pipeline) if shape is not None else ()
    if encode.text_embeddings:
        yield from raised_by(
            partial(text.identify, pipeline, {}), partial(_text_encoder_fits, pipeline)
        )
    if encode.features:
        yield from raised_by(
            partial(features.identify, pipeline, {}), partial(_vision_fits, pipeline)
        )


def _misfits(shape: LatentShape, pipeline: Pipeline) -> Iterator[InputError]:
    """Report where the autoencoder's latents do not fit the model, its resolutions or the tiles."""
    model = pipeline.train.model
    tile_px = pipeline.encode.tile_px
    if pipeline.train.phases:
        yield from raised_by(partial(shape.check_channels, model))
    for size in pipeline.encoded_from:
        yield from raised_by(partial(check_resolution, shape, model, size))
    if tile_px is not None:
        yield from raised_by(partial(shape.check_tile, tile_px))


def _text_encoder_fits(pipeline: Pipeline) -> None:
    reference = resolve(pipeline.components).need("text_encoder")
    width = text_width(reference)
    if width is not None and pipeline.train.phases:
        check_text_width(width, reference, pipeline.train.model)


def _vision_fits(pipeline: Pipeline) -> None:
    _, patch_size = vision_sizes(resolve(pipeline.components).need("vision"))
    features.check_patches(pipeline.encode.features_px, patch_size)
