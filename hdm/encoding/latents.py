"""Pictures to latents of one resolution: full frames, grouped into shards by shape.

Pictures of all splits are encoded; which split one is in is looked up in training.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from hdm.config import ImageSettings, Pipeline
from hdm.data.images import BadImage, decode
from hdm.data.latents import DTYPES, LatentFormat, LatentWriter, latent_file_name
from hdm.data.shards import ImageReader
from hdm.data.tables import num_shards, read_table, shard_name
from hdm.encoding.frames import Framing, PlannedFile, plan_files
from hdm.errors import ConfigError, DamagedError, InputError
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.models.components import autoencoder_in, autoencoder_weights, weights_digest
from hdm.models.devices import Batches, choose_device
from hdm.progress import Tracker, track
from hdm.store import Draft, Identity, Output, Store

SCHEMA = 1
log = logging.getLogger(__name__)


def identify(pipeline: Pipeline, inputs: Mapping[str, str], resolution: int) -> Identity:
    """What the latents of one resolution depend on.

    Args:
        pipeline: the settings.
        inputs: digests of `download` and `filter`, and of `vae` where the pipeline fine-tunes its autoencoder.
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
    }
    return Identity(f"encode.{resolution}px", SCHEMA, config, inputs, autoencoder_weights(inputs, pipeline.components))


def make(pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store, resolution: int) -> Output:
    """Raw latents of every kept picture, in `latents-<h>x<w>-<n>.parquet`.

    Returns:
        The output; its counts are images, bytes (of latents), upscaled (pictures smaller than the resolution), failed (pictures that
        cannot be decoded, or have another size than when they were measured) and not_finite.

    Raises:
        ConfigError: the autoencoder and the model do not fit each other, or the resolution does not fit both.
        InputError: the filter kept no picture.
        DoesNotFitError: a single picture does not fit in the device's memory.
    """
    reference = autoencoder_in(inputs, pipeline.components)
    autoencoder = load_autoencoder(reference, choose_device(pipeline.encode.device, f"the autoencoder for {identity.name}"))
    _check_fit(autoencoder, reference, pipeline, resolution)
    pictures = _kept_pictures(inputs["download"], inputs["filter"])
    framing = Framing(resolution, autoencoder.downscale * pipeline.train.model.patch_size, pipeline.encode.max_aspect)
    form = LatentFormat(
        autoencoder.channels, 0, 0, pipeline.encode.dtype, resolution, autoencoder.downscale,
        {**autoencoder.identity, "weights": weights_digest(reference)},
    )  # fmt: skip
    plan = _plan(pictures, framing, form, pipeline.encode.shard_mb)
    with (
        store.draft(identity) as draft,
        track(identity.name, len(pictures), "images") as bar,
        _Frames(inputs["download"], pipeline.images, framing, pipeline.encode.batch_size) as frames,
    ):
        stage = _LatentStage(autoencoder, Batches(pipeline.encode.batch_size, "encode.device"), frames, bar)
        for file in plan:
            name = latent_file_name(file.height // form.downscale, file.width // form.downscale, file.number)
            if draft.has(name):
                bar.advance(len(file.rows))
            else:
                stage.write(draft, name, form, file, pictures.take(file.rows))
        return draft.commit(_summary(draft, form))


def _check_fit(autoencoder: Autoencoder, reference: str, pipeline: Pipeline, resolution: int) -> None:
    model = pipeline.train.model
    if autoencoder.channels != model.channels:
        raise ConfigError(
            f"the autoencoder {reference} has {autoencoder.channels} latent channels, the model takes {model.channels}",
            where="train.model.channels",
            do=f"set train.model.channels={autoencoder.channels}, or name another components.autoencoder",
        )
    multiple = autoencoder.downscale * model.patch_size
    if resolution % multiple:
        raise ConfigError(
            f"resolution {resolution} is not a multiple of {multiple}: downscale {autoencoder.downscale} of the autoencoder {reference} "
            f"× patch {model.patch_size} of the model",
            where="train.phases",
            do=f"use {max(1, round(resolution / multiple)) * multiple}",
        )


def _kept_pictures(download: Output, filter: Output) -> pa.Table:
    """Where each kept picture lies and what it is: key, shard, offset, bytes, start of sha256, width, height."""
    tables = []
    for shard in range(num_shards(filter, "scores")):
        scores = read_table(filter.file(shard_name("scores", shard)), ["key", "kept", "width", "height"])
        path = download.file(shard_name("samples", shard))
        samples = read_table(path, ["key", "status", "offset", "bytes", "sha256"])
        samples = samples.filter(pc.equal(samples.column("status"), "ok"))  # nothing else was there to be filtered
        if not scores.column("key").equals(samples.column("key")):
            raise DamagedError("the items of a shard are not those that were filtered", where=path, do="run again --from download")
        columns = {
            **{name: scores.column(name) for name in ("key", "width", "height")},
            "shard": pa.array(np.full(len(scores), shard, np.int32)),
            **{name: samples.column(name) for name in ("offset", "bytes")},
            "sha256": pc.utf8_slice_codeunits(samples.column("sha256"), 0, 16),  # 64 bits find any damage, and take little memory
        }
        tables.append(pa.table(columns).filter(scores.column("kept")))
    if not any(len(table) for table in tables):
        raise InputError("the filter kept no picture, so there is nothing to encode", where=filter.path, do="lower the filter's thresholds")
    return pa.concat_tables(tables)


def _plan(pictures: pa.Table, framing: Framing, form: LatentFormat, shard_mb: int) -> list[PlannedFile]:
    widths, heights = framing.sizes(pictures.column("width").to_numpy(), pictures.column("height").to_numpy())
    bytes_a_pixel = form.channels * DTYPES[form.dtype].itemsize / form.downscale**2
    total = int((widths * heights).sum() * bytes_a_pixel)
    log.info(
        "%d px: %d pictures, %.1f MB of latents, %d bytes a picture", framing.resolution, len(pictures), total / 1e6, total / len(pictures)
    )
    return list(plan_files(widths, heights, bytes_a_pixel, shard_mb * 1e6))


@dataclass(frozen=True)
class _Frame:
    """A picture ready to be encoded: pixels (h, w, 3) uint8."""

    key: str
    width: int
    height: int
    pixels: np.ndarray


class _Frames:
    """Decoding, cutting and resizing in threads, some pictures ahead of the encoder."""

    def __init__(self, download: Output, settings: ImageSettings, framing: Framing, batch_size: int) -> None:
        self.settings, self.framing, self.ahead = settings, framing, 2 * batch_size
        self.download, self.reader = download, ImageReader(download)

    def __enter__(self) -> _Frames:
        self.threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode")
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(wait=True, cancel_futures=True)
        self.reader.close()

    def read(self, pictures: Iterable[dict], file: PlannedFile) -> Iterator[_Frame | None]:
        """The frames in order; None for a picture that cannot be had."""
        waiting: deque[Future[_Frame | None]] = deque()
        for picture in pictures:
            waiting.append(self.threads.submit(self._frame, picture, (file.width, file.height)))
            if len(waiting) > self.ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _frame(self, picture: dict, size: tuple[int, int]) -> _Frame | None:
        key, width, height = picture["key"], picture["width"], picture["height"]
        data = self.reader.read(picture["shard"], picture["offset"], picture["bytes"])
        if not hashlib.sha256(data).hexdigest().startswith(picture["sha256"]):
            path = self.download.path / shard_name("images", picture["shard"], "tar")
            raise DamagedError(f"picture {key} is not what was downloaded", where=path, do="find what else is damaged with `hdm verify`")
        try:
            pixels = decode(data, self.settings).pixels
        except BadImage as error:
            log.warning("picture %s cannot be decoded: %s", key, error)
            return None
        if pixels.shape[:2] != (height, width):
            log.warning("picture %s is %d × %d, and was measured as %d × %d", key, *pixels.shape[1::-1], width, height)
            return None
        framed = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box=self.framing.cut(width, height))
        return _Frame(key, width, height, np.asarray(framed))


class _LatentStage:
    """The autoencoder at work on one file after the other."""

    def __init__(self, autoencoder: Autoencoder, batches: Batches, frames: _Frames, bar: Tracker) -> None:
        self.autoencoder, self.batches, self.frames, self.bar = autoencoder, batches, frames, bar

    def write(self, draft: Draft, name: str, form: LatentFormat, file: PlannedFile, pictures: pa.Table) -> None:
        form = replace(form, height=file.height // form.downscale, width=file.width // form.downscale)
        with draft.write(name) as pending:
            counts = dict.fromkeys(("images", "bytes", "upscaled", "failed", "not_finite"), 0)
            with LatentWriter(pending.path, form, len(pictures)) as writer:
                for frames in self._batches(pictures, file, counts):
                    self._encode(frames, writer, counts)
            pending.counts.update({**counts, "bytes": counts["images"] * form.row_bytes})

    def _batches(self, pictures: pa.Table, file: PlannedFile, counts: dict[str, int]) -> Iterator[list[_Frame]]:
        batch: list[_Frame] = []
        for frame in self.frames.read(pictures.to_pylist(), file):
            self.bar.advance()
            if frame is None:
                counts["failed"] += 1
                continue
            batch.append(frame)
            if len(batch) >= self.batches.size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _encode(self, frames: list[_Frame], writer: LatentWriter, counts: dict[str, int]) -> None:
        for batch, raw in self.batches.run(frames, self._run):
            stored = raw.to(DTYPES[writer.form.dtype]).cpu()
            finite = stored.isfinite().flatten(1).all(1)
            for frame in (frame for frame, good in zip(batch, finite.tolist(), strict=True) if not good):
                log.warning("the latent of picture %s is not finite in %s", frame.key, writer.form.dtype)
            kept = [frame for frame, good in zip(batch, finite.tolist(), strict=True) if good]
            writer.add([frame.key for frame in kept], stored[finite], [(frame.width, frame.height) for frame in kept])
            counts["images"] += len(kept)
            counts["not_finite"] += len(batch) - len(kept)
            counts["upscaled"] += sum(self.frames.framing.enlarges(frame.width, frame.height) for frame in kept)

    def _run(self, frames: Sequence[_Frame]) -> Tensor:
        pixels = torch.from_numpy(np.stack([frame.pixels for frame in frames])).to(self.autoencoder.device)
        return self.autoencoder.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)


def _summary(draft: Draft, form: LatentFormat) -> dict:
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
