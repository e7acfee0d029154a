"""Latents of one resolution from those of a larger one, downscaled, and how far they are from
encoding.

An autoencoder trained for it (EQ-VAE, arXiv 2502.09509) gives a downscaled picture nearly the
downscaled latent; others do not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from hdm.config import Pipeline
from hdm.data.latents import (
    DTYPES,
    LatentFile,
    LatentFormat,
    LatentWriter,
    latent_file_name,
    open_latents,
)
from hdm.encoding.encoder import images_of
from hdm.encoding.frames import Framing, PlannedFile, plan_files
from hdm.encoding.latents import check_resolution, summary
from hdm.encoding.pictures import FrameReader, Wanted, kept_pictures
from hdm.keys import Key
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import autoencoder_in
from hdm.models.devices import choose_devices
from hdm.progress import Tracker, track
from hdm.store import Draft, Identity, Output, Store

SCHEMA = 1
AT_ONCE = 256
MEASURED_PICTURES = 16
log = logging.getLogger(__name__)


def identify(
    pipeline: Pipeline, inputs: Mapping[str, str], resolution: int, larger: int
) -> Identity:
    """What downscaled latents depend on: the latents that they are made from.

    Args:
        pipeline: the settings.
        inputs: digests of `download`, `filter` and `encode.<larger>px`.
        resolution, larger: shorter sides of the framed pictures, in pixels.
    """
    encode = pipeline.encode
    config = {
        "dtype": encode.dtype,
        "shard_mb": encode.shard_mb,
        "max_aspect": encode.max_aspect,
        "resolution": resolution,
        "from_larger": larger,
        "patch_size": pipeline.train.model.patch_size,
    }
    return Identity(f"encode.{resolution}px", SCHEMA, config, inputs)


def make(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store, resolution: int, larger: int
) -> Output:  # fmt: skip
    """Raw latents of every picture that the larger resolution has, in shards like those of
    `hdm.encoding.latents`.

    Returns:
        The output; its counts are images, bytes and upscaled; its summary has `error`, of some
        pictures: root mean square difference from encoding them at this resolution, over the
            encoded latents' standard deviation.

    Raises:
        ConfigError: the resolution does not fit the autoencoder and the model.
    """
    reference = autoencoder_in(inputs, pipeline.components)
    autoencoder = load_autoencoder(
        reference, choose_devices(pipeline.encode.device, f"the autoencoder ({resolution} px)")[0]
    )
    shape = replace(autoencoder.shape, name=reference)
    shape.check_channels(pipeline.train.model)
    check_resolution(shape, pipeline.train.model, resolution)
    framing = Framing(
        resolution,
        autoencoder.downscale * pipeline.train.model.patch_size,
        pipeline.encode.max_aspect,
    )
    source = _Source(open_latents(inputs[f"encode.{larger}px"]))
    form = replace(source.files[0].form, resolution=resolution, dtype=pipeline.encode.dtype)
    bytes_a_pixel = form.channels * DTYPES[form.dtype].itemsize / form.downscale**2
    plan = list(
        plan_files(
            *framing.sizes(source.widths, source.heights),
            bytes_a_pixel,
            pipeline.encode.shard_mb * 1e6,
        )
    )
    with store.draft(identity) as draft, track(identity.name, len(source.keys), "images") as bar:
        for file in plan:
            _write(draft, source, framing, form, file, bar)
        rows = np.concatenate([file.rows for file in plan])[:MEASURED_PICTURES]
        pictures = _pictures(inputs, [source.keys[row] for row in rows.tolist()])
        with FrameReader(
            inputs["download"], pipeline.images, MEASURED_PICTURES, pipeline.threads
        ) as reader:
            found = reader.read(
                Wanted(picture, [(framing, framing.size(picture))]) for picture in pictures
            )
            encoded = [
                autoencoder.encode(images_of(frames, autoencoder.device))[0].cpu()
                for frames in found
                if frames
            ]
        error = relative_error(
            [
                source.downscaled(row, latent.shape[1:])
                for row, latent in zip(rows, encoded, strict=True)
            ],
            encoded,
        )
        log.warning(
            "%d px: latents downscaled from %d px differ from encoded ones by %.0f %% of their standard deviation",
            resolution, larger, 100 * error,
        )  # fmt: skip
        return draft.commit({**summary(draft, form), "error": float(f"{error:.2g}")})


def relative_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Root mean square difference over the standard deviation of the truth: (C, h, w) each,
    channels weigh as much as they vary.
    """
    difference, values = (
        torch.cat([part.float().flatten(1) for part in parts], 1)
        for parts in ([one.float() - other for one, other in zip(found, truth, strict=True)], truth)
    )
    return float((difference.square().mean() / values.var(1).mean()).sqrt())


class _Source:
    """The larger resolution's pictures, one row after the other over its shards."""

    def __init__(self, files: Sequence[LatentFile]) -> None:
        self.files = files
        self.firsts = np.cumsum([0, *(len(file) for file in files)])
        tables = pa.concat_tables([file.table() for file in files])
        self.keys = tables.column("key").to_pylist()
        self.widths, self.heights = (
            tables.column(f"image_{side}").to_numpy() for side in ("width", "height")
        )

    def parts(self, rows: np.ndarray) -> Iterator[tuple[list[int], Tensor]]:
        """Rows in ascending order by shard, with their raw latents (n, C, h, w) float32."""
        shard_of = (np.searchsorted(self.firsts, rows, side="right") - 1).tolist()
        for shard, group in groupby(
            zip(shard_of, rows.tolist(), strict=True), key=lambda pair: pair[0]
        ):
            part = [row for _, row in group]
            for start in range(0, len(part), AT_ONCE):
                some = part[start : start + AT_ONCE]
                yield (
                    some,
                    self.files[shard]
                    .latents([row - int(self.firsts[shard]) for row in some])
                    .float(),
                )

    def downscaled(self, row: int, size: Sequence[int]) -> Tensor:
        [(_, latent)] = self.parts(np.array([row]))
        return downscaled(latent, size)[0]


def downscaled(latent: Tensor, size: Sequence[int]) -> Tensor:
    """Raw latents (n, C, h, w) brought to another (h, w), each value a weighted mean of those that
    it covers.
    """
    return F.interpolate(latent, tuple(size), mode="bilinear", antialias=True)


def _write(
    draft: Draft,
    source: _Source,
    framing: Framing,
    form: LatentFormat,
    file: PlannedFile,
    bar: Tracker,
) -> None:
    form = replace(form, height=file.height // form.downscale, width=file.width // form.downscale)
    name = latent_file_name(form.height, form.width, file.number)
    if draft.has(name):
        bar.advance(len(file.rows))
        return
    with draft.write(name) as pending:
        with LatentWriter(pending.path, form, len(file.rows)) as writer:
            for rows, latent in source.parts(file.rows):
                sizes = [(int(source.widths[row]), int(source.heights[row])) for row in rows]
                writer.add(
                    [source.keys[row] for row in rows],
                    downscaled(latent, (form.height, form.width)),
                    sizes,
                )
                bar.advance(len(rows))
        small = sum(
            framing.enlarges(int(source.widths[row]), int(source.heights[row])) for row in file.rows
        )
        pending.counts.update(
            {"images": len(file.rows), "bytes": len(file.rows) * form.row_bytes, "upscaled": small}
        )


def _pictures(inputs: Mapping[str, Output], keys: Sequence[Key]) -> list[dict]:
    """Where some pictures lie, in their order."""
    table = kept_pictures(inputs["download"], inputs["filter"])
    found = table.filter(pc.is_in(table.column("key"), pa.array(keys))).to_pylist()
    by_key = {picture["key"]: picture for picture in found}
    return [by_key[key] for key in keys]
