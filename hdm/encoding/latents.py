"""Encode pictures to latents: full frames, grouped into shards by shape, with several resolutions
from one decoding of a picture.

Pictures of all splits are encoded; training looks up their splits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from hdm import parts
from hdm.architecture import XUTConfig
from hdm.data.latent_files import DTYPES, LatentFormat
from hdm.encoding.crops import crop_error
from hdm.encoding.encoder import Band, Encoder, Encoders, Encoding, Resolution, images_of
from hdm.encoding.frames import Framing
from hdm.encoding.pictures import FrameReader, Request, kept_pictures, sixteenths
from hdm.encoding.settings import SHARE_STEP, Pipeline
from hdm.errors import ConfigError
from hdm.models.autoencoder import Autoencoder, LatentShape, load_autoencoder
from hdm.models.components import autoencoder_in, autoencoder_weights, weights_digest
from hdm.models.devices import choose_devices, stage_batches
from hdm.parts import Files, Part, drafts_of
from hdm.store import Draft, Identity, Output, Outputs, Store
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
        **encode.framing,
        "dtype": encode.dtype,
        "resolution": resolution,
        # Both sides of a frame are multiples of the patch.
        "patch_size": pipeline.train.model.patch_size,
    }
    # Part of the digest only where it is set, so that digests of untiled latents stay the same.
    if encode.tile_px is not None:
        config["tile_px"] = encode.tile_px
    if resolution in encode.shares:
        config["share"] = encode.shares[resolution]
    return Identity(
        output_name(resolution),
        SCHEMA,
        config,
        inputs,
        autoencoder_weights(inputs, pipeline.components),
    )


def make(
    pipeline: Pipeline,
    identity: Identity,
    inputs: Outputs,
    store: Store,
    resolution: int,
    also: Sequence[int] = (),
) -> Output:
    """Raw latents of every kept picture, or of the share that the settings ask for, in
    `latents-<h>x<w>-<n>.parquet`.

    Args:
        also: larger resolutions. The store's missing ones are made from the same decoding, each as
            an output of its own; those of a share are made alone.

    Returns:
        The output; its counts are images, bytes (of latents), upscaled (pictures smaller than the
        resolution), failed (pictures that cannot be decoded or do not have their measured size) and
        not_finite.

    Raises:
        ConfigError: the autoencoder and the model do not fit each other, or a resolution does not
            fit both.
        InputError: the filter kept no picture.
        DoesNotFitError: a single picture does not fit in the device's memory.
    """
    shares = pipeline.encode.shares
    also = [size for size in also if size not in shares and resolution not in shares]
    step = EncodingLatents(pipeline, inputs, (resolution, *also))
    # This loads the autoencoder, and refuses what does not fit before any output is locked.
    step.check()
    others = [identify(pipeline, identity.inputs, size) for size in also]
    with drafts_of(store, identity, others) as drafts:
        # Resolutions that the store has, or that another run is making, are left out. This must
        # come before the first use of `making`, which is cached.
        step.sizes = tuple(size for size in step.sizes if output_name(size) in drafts)
        return parts.make(step, drafts.values(), pipeline.execution, store)[0]


@dataclass(eq=False)
class EncodingLatents(Encoding):
    """Encode kept pictures at some resolutions, the lowest first."""

    pipeline: Pipeline
    inputs: Outputs
    sizes: tuple[int, ...]

    @property
    def reference(self) -> str:
        return autoencoder_in(self.inputs, self.pipeline.components)

    @cached_property
    def autoencoders(self) -> list[Autoencoder]:
        names = ", ".join(f"{size} px" for size in self.sizes)
        devices = choose_devices(self.pipeline.encode.device, f"the autoencoder ({names})")
        return [load_autoencoder(self.reference, device) for device in devices]

    @cached_property
    def pictures(self) -> pa.Table:
        return kept_pictures(self.inputs["download"], self.inputs["filter"])

    @cached_property
    def making(self) -> list[Resolution]:
        weights = weights_digest(self.reference)
        return [self._planned(size, weights) for size in self.sizes]

    @cached_property
    def figures(self) -> dict[str, dict[str, float]]:
        """Figures measured during encoding, by output; `open` fills them in."""
        return {}

    def check(self) -> None:
        """Raise a ConfigError if autoencoder, model and resolutions do not fit each other."""
        model = self.pipeline.train.model
        shape = replace(self.autoencoders[0].shape, name=self.reference)
        shape.check_channels(model)
        for size in self.sizes:
            check_resolution(shape, model, size)

    def _planned(self, size: int, weights: str) -> Resolution:
        autoencoder = self.autoencoders[0]
        encode = self.pipeline.encode
        multiple = autoencoder.downscale * self.pipeline.train.model.patch_size
        framing = Framing(size, multiple, encode.max_aspect)
        # Every shard's footer records this, so that latents of different autoencoders are never
        # mixed.
        made_by = {**autoencoder.identity, "weights": weights}
        # Height and width are set for each file.
        form = LatentFormat(
            autoencoder.channels, 0, 0, encode.dtype, size, autoencoder.downscale, made_by
        )
        shard_bytes = encode.shard_mb * 1e6
        groups = None
        if size in encode.shares:
            # A sixteenth after the other, so that all shares have the same first files.
            drawn = sixteenths(self.pictures)
            count = round(encode.shares[size] / SHARE_STEP)
            groups = np.where(drawn < count, drawn, np.int8(-1))
        return Resolution.of(
            self.pictures, output_name(size), framing, form, shard_bytes, groups=groups
        )

    def _part(self, band: Band) -> Part[Band]:
        part = super()._part(band)
        # Bands of several resolutions are read together, so only the files of a share, which are
        # made alone, can be taken over from another share.
        alone = len(self.sizes) == 1 and self.sizes[0] in self.pipeline.encode.shares
        return replace(part, reads=self._read) if alone else part

    @cached_property
    def _read(self) -> Files:
        """All files of both inputs: which file a picture goes to depends on every picture."""
        names = ("download", "filter")
        return {name: tuple(file.name for file in self.inputs[name].files) for name in names}

    @contextmanager
    def open(self) -> Iterator[Encoders]:
        encode = self.pipeline.encode
        threads = self.pipeline.threads
        # Encoders read at the same time and share the memory.
        decode_mb = max(1, self.pipeline.images.decode_mb // len(self.autoencoders))
        images = self.pipeline.images.model_copy(update={"decode_mb": decode_mb})
        encoders = []
        for autoencoder in self.autoencoders:
            device = autoencoder.device
            run = partial(autoencoder.encode, tile_px=encode.tile_px)
            batches = stage_batches(encode.batch_size, device, threads, "encode.device")
            encoders.append(Encoder(run, device, batches, DTYPES[encode.dtype]))
        download = self.inputs["download"]
        # Twice a batch: one is decoded while another is encoded.
        with FrameReader(download, images, 2 * encode.batch_size, threads) as reader:
            begun = time.perf_counter()
            yield Encoders(reader, encoders)
            seconds = time.perf_counter() - begun
            # Last: pictures that do not fit in the device's memory have been reported by now.
            crops = {one.output: self._crop_figures(reader, one) for one in self.making}
        pace = _pace(encoders, seconds)
        for output, crop in crops.items():
            # Speed differs from run to run, so it goes to run.json and not into the summary.
            self.figures[output] = crop | pace

    def _crop_figures(self, reader: FrameReader, one: Resolution) -> dict[str, float]:
        """The error of cropping latents, for the first pictures that are not square."""
        autoencoder = self.autoencoders[0]
        encode = self.pipeline.encode
        framing = one.framing
        longer = [file.rows for file in one.files if file.width != file.height]
        # Square pictures are never cropped, so the first ones that are not square are measured.
        rows = np.sort(np.concatenate([np.zeros(0, np.int64), *longer]))[: encode.crop_pictures]
        pictures = self.pictures.take(rows).to_pylist()
        requests = [Request(picture, [(framing, framing.size(picture))]) for picture in pictures]
        images = (
            images_of(frames, autoencoder.device)
            for frames in reader.read(requests)
            if frames is not None
        )
        error = crop_error(autoencoder, images, framing.multiple, encode.tile_px)
        if error is None:
            return {}
        log.info(
            "%d px: a crop of the latents differs from encoding the crop by %.1f %% "
            "of their standard deviation, by %.1f %% near the cut",
            one.framing.resolution,
            100 * error.interior,
            100 * error.border,
        )
        return {"crop_error": error.interior, "crop_error_border": error.border}

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        """Log the size of the files, for comparison with the plan, and sum up."""
        one = next(one for one in self.making if one.output == draft.identity.name)
        draft.figures.update(self.figures.get(one.output, {}))
        counts = draft.counts()
        files = sum(record.bytes for record in draft.records.values())
        log.info(
            "%d px: made %d pictures, %.1f MB of latents in %.1f MB of files, %d bytes a picture",
            one.framing.resolution,
            counts["images"],
            counts["bytes"] / 1e6,
            files / 1e6,
            files / max(counts["images"], 1),
        )
        return summary(draft, one.form)


def _pace(encoders: Sequence[Encoder], seconds: float) -> dict[str, float]:
    count = sum(one.num_encoded for one in encoders)
    # A share well below 1 means that the model waited for decoding.
    busy = sum(one.busy_sec for one in encoders) / len(encoders) / seconds
    log.info(
        "%d pictures encoded in %.1f s, %.1f/s; the autoencoder was computing %.0f %% of the time",
        count,
        seconds,
        count / seconds,
        100 * busy,
    )
    return {"busy_share": busy, "images_per_sec": count / seconds}


def output_name(resolution: int) -> str:
    return f"encode.{resolution}px"


def check_resolution(shape: LatentShape, model: XUTConfig, resolution: int) -> None:
    """Raise a ConfigError if latents of a resolution cannot be divided into the model's patches."""
    multiple = shape.downscale * model.patch_size
    if resolution % multiple:
        raise ConfigError(
            f"resolution {resolution} is not a multiple of {multiple}: downscale {shape.downscale}"
            f" of the autoencoder {shape.name} × patch {model.patch_size} of the model",
            where="train.phases",
            do=f"use {' or '.join(map(str, multiples_beside(resolution, multiple)))}",
        )


def summary(draft: Draft, form: LatentFormat) -> dict[str, Any]:
    """The summary of an output of latents."""
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
