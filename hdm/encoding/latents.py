"""Pictures to latents: full frames, grouped into shards by shape; several resolutions from one
decoding of a picture.

Pictures of all splits are encoded; which split one is in is looked up in training.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from hdm.architecture import XUTConfig
from hdm.config import Pipeline
from hdm.data.latents import DTYPES, LatentFormat
from hdm.encoding.crops import crop_error
from hdm.encoding.encoder import Encoder, Resolution, images_of, write
from hdm.encoding.frames import Framing, plan_files
from hdm.encoding.pictures import FrameReader, Wanted, kept_pictures
from hdm.encoding.settings import EncodeSettings
from hdm.errors import ConfigError, LockedError
from hdm.models.autoencoder import Autoencoder, LatentShape, load_autoencoder
from hdm.models.components import autoencoder_in, autoencoder_weights, weights_digest
from hdm.models.devices import choose_devices, stage_batches
from hdm.progress import track
from hdm.store import Draft, Identity, Output, Store
from hdm.values import multiples_beside

SCHEMA = 2
log = logging.getLogger(__name__)


def identify(pipeline: Pipeline, inputs: Mapping[str, str], resolution: int) -> Identity:
    """What the latents of one resolution depend on.

    Args:
        pipeline: the settings.
        inputs: digests of `download` and `filter`, and of `vae` where the pipeline fine-tunes its
            autoencoder.
        resolution: shorter side of the framed pictures, in pixels.

    Raises:
        InputError: the autoencoder is not on this machine.
    """
    encode = pipeline.encode
    config = {
        "images": pipeline.images.result_fields(),
        "dtype": encode.dtype,
        "shard_mb": encode.shard_mb,
        "max_aspect": encode.max_aspect,
        "resolution": resolution,
        "patch_size": pipeline.train.model.patch_size,
        **({} if encode.tile_px is None else {"tile_px": encode.tile_px}),
    }
    return Identity(
        f"encode.{resolution}px",
        SCHEMA,
        config,
        inputs,
        autoencoder_weights(inputs, pipeline.components),
    )


def make(
    pipeline: Pipeline,
    identity: Identity,
    inputs: Mapping[str, Output],
    store: Store,
    resolution: int,
    also: Sequence[int] = (),
) -> Output:
    """Raw latents of every kept picture, in `latents-<h>x<w>-<n>.parquet`.

    Args:
        also: larger resolutions, of which those that the store lacks are made from the same
            decoding, each as an output of its own.

    Returns:
        The output; its counts are images, bytes (of latents), upscaled (pictures smaller than the
        resolution), failed (pictures that cannot be decoded, or have another size than when they
        were measured) and not_finite.

    Raises:
        ConfigError: the autoencoder and the model do not fit each other, or a resolution does not
            fit both.
        InputError: the filter kept no picture.
        DoesNotFitError: a single picture does not fit in the device's memory.
    """
    reference = autoencoder_in(inputs, pipeline.components)
    names = ", ".join(f"{size} px" for size in (resolution, *also))
    autoencoders = [
        load_autoencoder(reference, device)
        for device in choose_devices(pipeline.encode.device, f"the autoencoder ({names})")
    ]
    shape = replace(autoencoders[0].shape, name=reference)
    shape.check_channels(pipeline.train.model)
    for size in (resolution, *also):
        check_resolution(shape, pipeline.train.model, size)
    pictures = kept_pictures(inputs["download"], inputs["filter"])
    with ExitStack() as stack:
        drafts = {resolution: stack.enter_context(store.draft(identity))}
        for size in also:
            other = identify(pipeline, identity.inputs, size)
            with contextlib.suppress(LockedError):  # another run makes it
                if store.find(other) is None:
                    drafts[size] = stack.enter_context(store.draft(other))
        weights = weights_digest(reference)
        making = [
            _plan(pipeline, autoencoders[0], weights, draft, size, pictures)
            for size, draft in drafts.items()
        ]
        _encode(pipeline, autoencoders, inputs["download"], pictures, making)
        outputs = [_commit(one) for one in making]
    return outputs[0]


def check_resolution(shape: LatentShape, model: XUTConfig, resolution: int) -> None:
    """Raise a ConfigError where latents of a resolution cannot be cut into the model's patches."""
    multiple = shape.downscale * model.patch_size
    if resolution % multiple:
        raise ConfigError(
            f"resolution {resolution} is not a multiple of {multiple}: downscale {shape.downscale} of the autoencoder {shape.name} "
            f"× patch {model.patch_size} of the model",
            where="train.phases",
            do=f"use {' or '.join(map(str, multiples_beside(resolution, multiple)))}",
        )


def _plan(
    pipeline: Pipeline,
    autoencoder: Autoencoder,
    weights: str,
    draft: Draft,
    resolution: int,
    pictures: pa.Table,
) -> Resolution:
    encode = pipeline.encode
    framing = Framing(
        resolution, autoencoder.downscale * pipeline.train.model.patch_size, encode.max_aspect
    )
    made_by = {**autoencoder.identity, "weights": weights}
    form = LatentFormat(
        autoencoder.channels, 0, 0, encode.dtype, resolution, autoencoder.downscale, made_by
    )
    widths, heights = framing.sizes(
        pictures.column("width").to_numpy(), pictures.column("height").to_numpy()
    )
    bytes_a_pixel = form.channels * DTYPES[form.dtype].itemsize / form.downscale**2
    total = int((widths * heights).sum() * bytes_a_pixel)
    log.info(
        "%d px: %d pictures, %.1f MB of latents, %d bytes a picture",
        resolution,
        len(pictures),
        total / 1e6,
        total / len(pictures),
    )
    return Resolution(
        draft,
        framing,
        form,
        list(plan_files(widths, heights, bytes_a_pixel, encode.shard_mb * 1e6)),
    )


def _commit(one: Resolution) -> Output:
    """Finish the output, and compare its bytes with what was told."""
    output = one.draft.commit(summary(one.draft, one.form))
    images, latents, files = (
        output.counts["images"],
        output.counts["bytes"],
        sum(record.bytes for record in output.files),
    )
    log.info(
        "%d px: made %d pictures, %.1f MB of latents in %.1f MB of files, %d bytes a picture",
        one.framing.resolution, images, latents / 1e6, files / 1e6, files / max(images, 1),
    )  # fmt: skip
    return output


def _encode(
    pipeline: Pipeline,
    autoencoders: Sequence[Autoencoder],
    download: Output,
    pictures: pa.Table,
    making: Sequence[Resolution],
) -> None:
    """Make the files that the drafts lack, and note how."""
    encode = pipeline.encode
    # Encoders read at the same time, and share the memory.
    images = pipeline.images.model_copy(
        update={"decode_mb": max(1, pipeline.images.decode_mb // len(autoencoders))}
    )
    if all(one.draft.has(one.name(file)) for one in making for file in one.files):
        return
    with (
        track(
            " ".join(one.draft.identity.name for one in making),
            len(pictures) * len(making),
            "images",
        ) as bar,
        FrameReader(download, images, 2 * encode.batch_size, pipeline.threads) as reader,
    ):
        dtype = DTYPES[encode.dtype]
        encoders = [
            Encoder(
                partial(one.encode, tile_px=encode.tile_px),
                one.device,
                stage_batches(encode.batch_size, one.device, pipeline.threads, "encode.device"),
                dtype,
            )
            for one in autoencoders
        ]
        begun = time.perf_counter()
        write(encoders, reader, pictures, making, bar)
        seconds = time.perf_counter() - begun
        # Last: what does not fit in the device's memory has been met by now, and said well.
        crops = [_crop_figures(autoencoders[0], reader, pictures, one, encode) for one in making]
    count, busy = (
        sum(one.num_encoded for one in encoders),
        sum(one.busy_sec for one in encoders) / len(encoders) / seconds,
    )
    log.info(
        "%d pictures encoded in %.1f s, %.1f/s; the autoencoder was computing %.0f %% of the time",
        count,
        seconds,
        count / seconds,
        100 * busy,
    )
    for one, crop in zip(making, crops, strict=True):
        one.draft.figures |= {**crop, "busy_share": busy, "images_per_sec": count / seconds}


def _crop_figures(
    autoencoder: Autoencoder,
    reader: FrameReader,
    pictures: pa.Table,
    one: Resolution,
    encode: EncodeSettings,
) -> dict[str, float]:
    """What cropping the latents costs, on the first pictures that are not square."""
    longer = [file.rows for file in one.files if file.width != file.height]
    rows = np.sort(np.concatenate([np.zeros(0, np.int64), *longer]))[: encode.crop_pictures]
    asked = (
        Wanted(picture, [(one.framing, one.framing.size(picture))])
        for picture in pictures.take(rows).to_pylist()
    )
    images = (images_of(found, autoencoder.device) for found in reader.read(asked) if found)
    error = crop_error(autoencoder, images, one.framing.multiple, encode.tile_px)
    if error is None:
        return {}
    log.info(
        "%d px: a crop of the latents differs from encoding the crop by %.1f %% of their standard deviation, by %.1f %% near the cut",
        one.framing.resolution, 100 * error.interior, 100 * error.border,
    )  # fmt: skip
    return {"crop_error": error.interior, "crop_error_border": error.border}


def summary(draft: Draft, form: LatentFormat) -> dict[str, Any]:
    """What an output of latents says of the whole."""
    shapes: dict[str, int] = {}
    for name, record in sorted(draft.records.items()):
        shape = name.split("-")[1]
        shapes[shape] = shapes.get(shape, 0) + record.counts["images"]
    return {
        "shapes": shapes,
        "channels": form.channels,
        "downscale": form.downscale,
        "dtype": form.dtype,
        "resolution": form.resolution,
        "autoencoder": dict(form.autoencoder),
    }
