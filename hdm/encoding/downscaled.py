"""Make the latents of one resolution by downscaling those of a larger one, and measure how far they
are from encoded ones.

With an autoencoder trained for it (EQ-VAE, arXiv 2502.09509) the latent of a downscaled picture is
nearly the downscaled latent; with others it is not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from hdm import parts
from hdm.data.latent_files import LatentFile, LatentWriter, open_latents
from hdm.encoding.encoder import Resolution, bytes_a_pixel, images_of
from hdm.encoding.frames import Framing, PlannedFile, plan_files
from hdm.encoding.latents import check_resolution, output_name, summary
from hdm.encoding.pictures import FrameReader, Request, kept_pictures
from hdm.encoding.settings import Pipeline
from hdm.errors import InputError
from hdm.keys import Key
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.models.components import autoencoder_in
from hdm.models.devices import choose_devices
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.store import Draft, Folder, Identity, Output, Outputs, Store

SCHEMA = 1
AT_ONCE = 256  # latents in memory
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
        **encode.framing,
        "resolution": resolution,
        "from_larger": larger,
        "patch_size": pipeline.train.model.patch_size,
    }
    return Identity(output_name(resolution), SCHEMA, config, inputs)


def make(
    pipeline: Pipeline,
    identity: Identity,
    inputs: Outputs,
    store: Store,
    resolution: int,
    larger: int,
) -> Output:
    """Raw latents of every picture that the larger resolution has, in shards like those of
    `hdm.encoding.latents`.

    Returns:
        The output; its counts are images, bytes and upscaled. Its summary has `error`: the root
        mean square difference from encoding some pictures at this resolution, in units of the
        encoded latents' standard deviation.

    Raises:
        ConfigError: the resolution does not fit the autoencoder or the model.
    """
    step = Downscaling(pipeline, inputs, resolution, larger)
    step.check()
    return parts.make_output(step, store, identity, pipeline.execution)


@dataclass(frozen=True)
class Downscaling(Step[PlannedFile, "_Source"]):
    """Downscale latents, file by file."""

    pipeline: Pipeline
    inputs: Outputs
    resolution: int
    larger: int

    unit = "images"

    @property
    def what(self) -> str:
        return output_name(self.resolution)

    @property
    def reference(self) -> str:
        return autoencoder_in(self.inputs, self.pipeline.components)

    @cached_property
    def autoencoder(self) -> Autoencoder:
        what = f"the autoencoder ({self.resolution} px)"
        device = choose_devices(self.pipeline.encode.device, what)[0]
        return load_autoencoder(self.reference, device)

    @cached_property
    def source(self) -> _Source:
        return _Source(open_latents(self.inputs[output_name(self.larger)]))

    @cached_property
    def result(self) -> Resolution:
        encode = self.pipeline.encode
        multiple = self.autoencoder.downscale * self.pipeline.train.model.patch_size
        framing = Framing(self.resolution, multiple, encode.max_aspect)
        # Channels, downscale and autoencoder are those of the larger latents.
        form = replace(self.source.files[0].form, resolution=self.resolution, dtype=encode.dtype)
        widths, heights = framing.sizes(self.source.widths, self.source.heights)
        files = plan_files(widths, heights, bytes_a_pixel(form), encode.shard_mb * 1e6)
        return Resolution(self.what, framing, form, list(files))

    def check(self) -> None:
        """Raise a ConfigError if the resolution does not fit the autoencoder or the model."""
        shape = replace(self.autoencoder.shape, name=self.reference)
        shape.check_channels(self.pipeline.train.model)
        check_resolution(shape, self.pipeline.train.model, self.resolution)

    def plan(self) -> Iterator[Part[PlannedFile]]:
        for file in self.result.files:
            yield Part(file, {self.what: (self.result.name(file),)}, len(file.rows))

    def open(self) -> AbstractContextManager[_Source]:
        return nullcontext(self.source)

    def make_part(
        self, part: Part[PlannedFile], folders: Folders, tools: _Source, bar: Tracker
    ) -> None:
        _write(folders[self.what], tools, self.result, part.task, bar)

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        error = self._error()
        # This figure decides whether the latents are usable, so it is worth a warning.
        log.warning(
            "%d px: latents downscaled from %d px differ from encoded ones by %.0f %% "
            "of their standard deviation",
            self.resolution,
            self.larger,
            100 * error,
        )
        return {**summary(draft, self.result.form), "error": float(f"{error:.2g}")}

    def _error(self) -> float:
        """Difference between the first pictures' latents and encoding them at this resolution."""
        rows = np.concatenate([file.rows for file in self.result.files])[:MEASURED_PICTURES]
        pictures = _pictures(self.inputs, [self.source.keys[row] for row in rows.tolist()])
        framing = self.result.framing
        device = self.autoencoder.device
        # These are the frames that `encode` would make at this resolution.
        requests = [Request(picture, [(framing, framing.size(picture))]) for picture in pictures]
        images = self.pipeline.images
        threads = self.pipeline.threads
        encoded = []
        downscaled = []
        with FrameReader(self.inputs["download"], images, MEASURED_PICTURES, threads) as reader:
            for row, frames in zip(rows, reader.read(requests), strict=True):
                if frames is None:  # the larger resolution has it, but it is gone since
                    continue
                latent = self.autoencoder.encode(images_of(frames, device))[0].cpu()
                encoded.append(latent)
                downscaled.append(self.source.downscaled(row, latent.shape[1:]))
        if not encoded:
            raise InputError(
                f"{self.resolution} px: none of the first {len(pictures)} pictures can be had any"
                " more, so the error of downscaled latents is not known",
                where=self.inputs["download"].path,
                do="run again with the pictures there, or take the size out of encode.from_larger",
            )
        return relative_error(downscaled, encoded)


def relative_error(latents: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Root mean square difference from the truth in units of its standard deviation: (C, h, w)
    each. Channels count as much as they vary.
    """
    differences = []
    values = []
    for latent, other in zip(latents, truth, strict=True):
        differences.append((latent.float() - other).flatten(1))
        values.append(other.float().flatten(1))
    difference = torch.cat(differences, 1)
    # Raw latents of different autoencoders have different scales, so the error is relative to the
    # spread.
    return float((difference.square().mean() / torch.cat(values, 1).var(1).mean()).sqrt())


class _Source:
    """The larger resolution's pictures, with rows numbered over all its shards."""

    def __init__(self, files: Sequence[LatentFile]) -> None:
        self.files = files
        self.firsts = np.cumsum([0, *(len(file) for file in files)])
        tables = pa.concat_tables([file.table() for file in files])
        self.keys = tables.column("key").to_pylist()
        self.widths = tables.column("image_width").to_numpy()
        self.heights = tables.column("image_height").to_numpy()

    def parts(self, rows: np.ndarray) -> Iterator[tuple[list[int], Tensor]]:
        """Rows in ascending order by shard, with their raw latents (n, C, h, w) float32."""
        shard_of = np.searchsorted(self.firsts, rows, side="right") - 1
        # A shard has one shape. Only some of its rows are converted to float32 at a time.
        for shard in np.unique(shard_of).tolist():
            in_shard = rows[shard_of == shard]
            for start in range(0, len(in_shard), AT_ONCE):
                some = in_shard[start : start + AT_ONCE]
                latents = self.files[shard].latents((some - self.firsts[shard]).tolist())
                yield some.tolist(), latents.float()

    def downscaled(self, row: int, size: Sequence[int]) -> Tensor:
        [(_, latent)] = self.parts(np.array([row]))
        return downscaled(latent, size)[0]


def downscaled(latent: Tensor, size: Sequence[int]) -> Tensor:
    """Raw latents (n, C, h, w) downscaled to (h, w) by antialiased bilinear interpolation."""
    # Bilinear with antialiasing came nearest to encoded latents, if by little: an error of 72 %,
    # bicubic 73 %, area 74 % (bench/RESULTS.md).
    return F.interpolate(latent, tuple(size), mode="bilinear", antialias=True)


def _write(
    folder: Folder, source: _Source, result: Resolution, file: PlannedFile, bar: Tracker
) -> None:
    downscale = result.form.downscale
    form = replace(result.form, height=file.height // downscale, width=file.width // downscale)
    num_enlarged = 0
    with folder.write(result.name(file)) as pending:
        with LatentWriter(pending.path, form, len(file.rows)) as writer:
            for rows, latent in source.parts(file.rows):
                keys = [source.keys[row] for row in rows]
                sizes = []
                for row in rows:
                    width = int(source.widths[row])
                    height = int(source.heights[row])
                    sizes.append((width, height))
                    num_enlarged += result.framing.enlarges(width, height)
                # Downscaling computes in float32; the writer casts to the shard's type.
                writer.add(keys, downscaled(latent, (form.height, form.width)), sizes)
                bar.advance(len(rows))
        count = len(file.rows)
        pending.counts.update(
            {"images": count, "bytes": count * form.row_bytes, "upscaled": num_enlarged}
        )


def _pictures(inputs: Outputs, keys: Sequence[Key]) -> list[dict[str, Any]]:
    """Rows of `kept_pictures` with these keys, in their order."""
    table = kept_pictures(inputs["download"], inputs["filter"])
    rows = pc.index_in(pa.array(keys), value_set=table.column("key"))
    assert not rows.null_count, "latents of pictures that the filter does not keep"
    pictures: list[dict[str, Any]] = table.take(rows).to_pylist()
    return pictures
