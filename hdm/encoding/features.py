"""Pictures to the patch features of a frozen vision model, which training may align the denoiser to
(REPA, arXiv 2410.06940).

One output for all resolutions: the full frame, as latents have it, at the vision model's own size.
A shard is laid out as a latent shard whose channels are the features' and whose autoencoder is the
vision model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pyarrow as pa

from hdm.config import Pipeline
from hdm.data.latents import DTYPES, LatentFormat
from hdm.encoding.encoder import Encoder, Resolution, write
from hdm.encoding.frames import Framing, plan_files
from hdm.encoding.latents import summary
from hdm.encoding.pictures import FrameReader, kept_pictures
from hdm.errors import ConfigError
from hdm.models.components import resolve, weights_digest
from hdm.models.devices import choose_devices, stage_batches
from hdm.models.vision import Vision, load_vision
from hdm.progress import track
from hdm.store import Draft, Identity, Output, Store
from hdm.values import multiples_beside

NAME, SCHEMA, KIND, DTYPE = "encode.features", 2, "features", "float16"
log = logging.getLogger(__name__)


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the features depend on: the pictures, how they are framed, and the vision model.

    Raises:
        InputError: the pipeline names no vision model, or it is not on this machine.
    """
    encode = pipeline.encode
    config = {
        "images": pipeline.images.result_fields(),
        "shard_mb": encode.shard_mb,
        "max_aspect": encode.max_aspect,
        "features_px": encode.features_px,
    }
    return Identity(
        NAME,
        SCHEMA,
        config,
        inputs,
        {"vision": weights_digest(resolve(pipeline.components).need("vision"))},
    )


def make(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store
) -> Output:
    """Features of every kept picture, in `features-<h>x<w>-<n>.parquet`; h × w is the grid of
    patches.

    Returns:
        The output; its counts are those of latents.

    Raises:
        ConfigError: pictures of that size are no whole number of patches.
        InputError: the filter kept no picture.
        DoesNotFitError: a single picture does not fit in the device's memory.
    """
    vision = load_vision(
        resolve(pipeline.components).need("vision"),
        choose_devices(pipeline.encode.device, "the vision model")[0],
    )
    pictures = kept_pictures(inputs["download"], inputs["filter"])
    with store.draft(identity) as draft, track(NAME, len(pictures), "images") as bar:
        one = _plan(pipeline, vision, draft, pictures)
        if not all(draft.has(one.name(file)) for file in one.files):
            encoder = Encoder(
                vision.encode,
                vision.device,
                stage_batches(
                    pipeline.encode.batch_size, vision.device, pipeline.threads, "encode.device"
                ),
                DTYPES[DTYPE],
            )
            with FrameReader(
                inputs["download"],
                pipeline.images,
                2 * pipeline.encode.batch_size,
                pipeline.threads,
            ) as reader:
                write([encoder], reader, pictures, [one], bar)
        return draft.commit(summary(draft, one.form))


def check_patches(features_px: int, patch_size: int) -> None:
    """Raise a ConfigError where the shorter side is no whole number of patches."""
    if features_px % patch_size:
        raise ConfigError(
            f"{features_px} px are no whole number of the vision model's patches of {patch_size}",
            where="encode.features_px",
            do=f"use {' or '.join(map(str, multiples_beside(features_px, patch_size)))}",
        )


def _plan(pipeline: Pipeline, vision: Vision, draft: Draft, pictures: pa.Table) -> Resolution:
    encode = pipeline.encode
    check_patches(encode.features_px, vision.patch_size)
    made_by = {"class": type(vision.model).__name__, "weights": draft.identity.weights["vision"]}
    form = LatentFormat(vision.width, 0, 0, DTYPE, encode.features_px, vision.patch_size, made_by)
    framing = Framing(encode.features_px, vision.patch_size, encode.max_aspect)
    widths, heights = framing.sizes(
        pictures.column("width").to_numpy(), pictures.column("height").to_numpy()
    )
    bytes_a_pixel = form.channels * DTYPES[DTYPE].itemsize / form.downscale**2
    total = float((widths * heights).sum() * bytes_a_pixel)
    log.info(
        "features: %d pictures, %.1f MB, %d bytes a picture",
        len(widths),
        total / 1e6,
        total / len(widths),
    )
    return Resolution(
        draft,
        framing,
        form,
        list(plan_files(widths, heights, bytes_a_pixel, encode.shard_mb * 1e6)),
        KIND,
    )
