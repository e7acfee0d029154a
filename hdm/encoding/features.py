"""Encode pictures to the patch features of a frozen vision model, to which training may align the
denoiser (REPA, arXiv 2410.06940).

One output serves all resolutions: it has the same full frame as latents, at the vision model's own
size. A shard has the layout of a latent shard whose channels are the features and whose autoencoder
is the vision model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from hdm import parts
from hdm.data.latent_files import DTYPES, LatentFormat
from hdm.encoding.encoder import Encoder, Encoders, Encoding, Resolution
from hdm.encoding.frames import Framing
from hdm.encoding.latents import summary
from hdm.encoding.pictures import FrameReader, kept_pictures
from hdm.encoding.settings import Pipeline
from hdm.errors import ConfigError
from hdm.models.components import resolve, weights_digest
from hdm.models.devices import choose_devices, stage_batches
from hdm.models.vision import Vision, load_vision
from hdm.store import Draft, Identity, Output, Outputs, Store
from hdm.values import multiples_beside

NAME = "encode.features"
SCHEMA = 2
KIND = "features"
DTYPE = "float16"


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the features depend on: the pictures, how they are framed, and the vision model.

    Raises:
        InputError: the pipeline names no vision model, or it is not on this machine.
    """
    config = {
        "images": pipeline.images.result_fields(),
        **pipeline.encode.framing,
        # One size serves all resolutions: training interpolates features to each resolution's
        # tokens.
        "features_px": pipeline.encode.features_px,
    }
    return Identity(
        NAME,
        SCHEMA,
        config,
        inputs,
        {"vision": weights_digest(resolve(pipeline.components).need("vision"))},
    )


def make(pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store) -> Output:
    """Features of every kept picture, in `features-<h>x<w>-<n>.parquet`; h × w is the grid of
    patches.

    Returns:
        The output; its counts are those of latents.

    Raises:
        ConfigError: pictures of that size are not a whole number of patches.
        InputError: the filter kept no picture.
        DoesNotFitError: a single picture does not fit in the device's memory.
    """
    step = EncodingFeatures(pipeline, inputs)
    check_patches(pipeline.encode.features_px, step.vision.patch_size)
    return parts.make_output(step, store, identity, pipeline.execution)


@dataclass(frozen=True)
class EncodingFeatures(Encoding):
    """Encode kept pictures by the vision model."""

    pipeline: Pipeline
    inputs: Outputs

    @cached_property
    def vision(self) -> Vision:
        return load_vision(
            resolve(self.pipeline.components).need("vision"),
            choose_devices(self.pipeline.encode.device, "the vision model")[0],
        )

    @cached_property
    def pictures(self) -> pa.Table:
        return kept_pictures(self.inputs["download"], self.inputs["filter"])

    @cached_property
    def making(self) -> list[Resolution]:
        encode = self.pipeline.encode
        vision = self.vision
        weights = weights_digest(resolve(self.pipeline.components).need("vision"))
        made_by = {"class": type(vision.model).__name__, "weights": weights}
        # Height and width are set for each file.
        form = LatentFormat(
            vision.width, 0, 0, DTYPE, encode.features_px, vision.patch_size, made_by
        )
        framing = Framing(encode.features_px, vision.patch_size, encode.max_aspect)
        shard_bytes = encode.shard_mb * 1e6
        return [Resolution.of(self.pictures, NAME, framing, form, shard_bytes, KIND)]

    @contextmanager
    def open(self) -> Iterator[Encoders]:
        encode = self.pipeline.encode
        threads = self.pipeline.threads
        device = self.vision.device
        batches = stage_batches(encode.batch_size, device, threads, "encode.device")
        encoder = Encoder(self.vision.encode, device, batches, DTYPES[DTYPE])
        download = self.inputs["download"]
        images = self.pipeline.images
        with FrameReader(download, images, 2 * encode.batch_size, threads) as reader:
            yield Encoders(reader, [encoder])

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        return summary(draft, self.making[0].form)


def check_patches(features_px: int, patch_size: int) -> None:
    """Raise a ConfigError if the shorter side is not a whole number of patches."""
    if features_px % patch_size:
        raise ConfigError(
            f"{features_px} px is not a whole number of the vision model's patches of {patch_size}",
            where="encode.features_px",
            do=f"use {' or '.join(map(str, multiples_beside(features_px, patch_size)))}",
        )
