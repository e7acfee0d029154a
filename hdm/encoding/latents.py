"""Pictures to latents: full frames, grouped into shards by shape; several resolutions from one decoding of a picture.

Pictures of all splits are encoded; which split one is in is looked up in training.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hdm.config import Pipeline
from hdm.data.latents import DTYPES, LatentFormat, LatentWriter, latent_file_name
from hdm.encoding.crops import crop_error
from hdm.encoding.frames import Framing, PlannedFile, bands, plan_files, reading_order
from hdm.encoding.pictures import Decoders, Frame, Wanted, kept_pictures
from hdm.errors import ConfigError, LockedError
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.models.components import resolve, weights_digest
from hdm.models.devices import Batches, choose_device
from hdm.progress import Tracker, track
from hdm.store import Draft, Identity, Output, Store

SCHEMA = 1
ASKED_AT_ONCE = 1000  # pictures whose rows are Python objects at a time
log = logging.getLogger(__name__)


def autoencoder_reference(pipeline: Pipeline) -> str:
    """The autoencoder that encodes.

    Raises:
        InputError: the pipeline names none.
    """
    return resolve(pipeline.components).need("autoencoder")


def identify(pipeline: Pipeline, inputs: Mapping[str, str], resolution: int) -> Identity:
    """What the latents of one resolution depend on.

    Args:
        pipeline: the settings.
        inputs: digests of `download` and `filter`.
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
    weights = {"autoencoder": weights_digest(autoencoder_reference(pipeline))}
    return Identity(f"encode.{resolution}px", SCHEMA, config, inputs, weights)


def make(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store, resolution: int, also: Sequence[int] = ()
) -> Output:
    """Raw latents of every kept picture, in `latents-<h>x<w>-<n>.parquet`.

    Args:
        also: larger resolutions, of which those that the store lacks are made from the same decoding, each as an output of its own.

    Returns:
        The output; its counts are images, bytes (of latents), upscaled (pictures smaller than the resolution), failed (pictures that
        cannot be decoded, or have another size than when they were measured) and not_finite.

    Raises:
        ConfigError: the autoencoder and the model do not fit each other, or a resolution does not fit both.
        InputError: the filter kept no picture.
        DoesNotFitError: a single picture does not fit in the device's memory.
    """
    reference = autoencoder_reference(pipeline)
    names = ", ".join(f"{size} px" for size in (resolution, *also))
    autoencoder = load_autoencoder(reference, choose_device(pipeline.encode.device, f"the autoencoder ({names})"))
    for size in (resolution, *also):
        check_fit(autoencoder, reference, pipeline, size)
    pictures = kept_pictures(inputs["download"], inputs["filter"])
    with ExitStack() as stack:
        drafts = {resolution: stack.enter_context(store.draft(identity))}
        for size in also:
            other = identify(pipeline, identity.inputs, size)
            with contextlib.suppress(LockedError):  # another run makes it
                if store.find(other) is None:
                    drafts[size] = stack.enter_context(store.draft(other))
        making = [_Resolution.plan(pipeline, autoencoder, draft, size, pictures) for size, draft in drafts.items()]
        _encode(pipeline, autoencoder, inputs["download"], pictures, making)
        outputs = [one.commit() for one in making]
    return outputs[0]


def check_fit(autoencoder: Autoencoder, reference: str, pipeline: Pipeline, resolution: int) -> None:
    """Raise a ConfigError where the autoencoder, the model and a resolution do not fit each other."""
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


@dataclass(frozen=True)
class _Resolution:
    """One output in the making: its draft, how pictures are framed for it, what its files hold, and which there are."""

    draft: Draft
    framing: Framing
    form: LatentFormat
    files: list[PlannedFile]

    @staticmethod
    def plan(pipeline: Pipeline, autoencoder: Autoencoder, draft: Draft, resolution: int, pictures: pa.Table) -> _Resolution:
        encode = pipeline.encode
        framing = Framing(resolution, autoencoder.downscale * pipeline.train.model.patch_size, encode.max_aspect)
        made_by = {**autoencoder.identity, "weights": draft.identity.weights["autoencoder"]}
        form = LatentFormat(autoencoder.channels, 0, 0, encode.dtype, resolution, autoencoder.downscale, made_by)
        widths, heights = framing.sizes(pictures.column("width").to_numpy(), pictures.column("height").to_numpy())
        bytes_a_pixel = form.channels * DTYPES[form.dtype].itemsize / form.downscale**2
        total = int((widths * heights).sum() * bytes_a_pixel)
        log.info(
            "%d px: %d pictures, %.1f MB of latents, %d bytes a picture", resolution, len(pictures), total / 1e6, total / len(pictures)
        )
        return _Resolution(draft, framing, form, list(plan_files(widths, heights, bytes_a_pixel, encode.shard_mb * 1e6)))

    def name(self, file: PlannedFile) -> str:
        return latent_file_name(file.height // self.form.downscale, file.width // self.form.downscale, file.number)

    def commit(self) -> Output:
        """Finish the output, and compare its bytes with what was told."""
        output = self.draft.commit(summary(self.draft, self.form))
        images, latents, files = output.counts["images"], output.counts["bytes"], sum(record.bytes for record in output.files)
        log.info(
            "%d px: made %d pictures, %.1f MB of latents in %.1f MB of files, %d bytes a picture",
            self.framing.resolution, images, latents / 1e6, files / 1e6, files / max(images, 1),
        )  # fmt: skip
        return output


def _encode(pipeline: Pipeline, autoencoder: Autoencoder, download: Output, pictures: pa.Table, making: Sequence[_Resolution]) -> None:
    """Make the files that the drafts lack, and note how."""
    encode = pipeline.encode
    if all(one.draft.has(one.name(file)) for one in making for file in one.files):
        return
    with (
        track(" ".join(one.draft.identity.name for one in making), len(pictures) * len(making), "images") as bar,
        Decoders(download, pipeline.images, 2 * encode.batch_size, encode.decode_mb * 1e6) as decoders,
    ):
        encoder = _Encoder(autoencoder, Batches(encode.batch_size, "encode.device"), DTYPES[encode.dtype], encode.tile_px)
        begun = time.perf_counter()
        _write(encoder, decoders, pictures, making, bar)
        seconds = time.perf_counter() - begun
        # Last: what does not fit in the device's memory has been met by now, and said well.
        crops = [_crop_figures(encoder, decoders, pictures, one, encode.crop_pictures) for one in making]
    log.info(
        "%d pictures encoded in %.1f s, %.1f/s; the autoencoder was computing %.0f %% of the time",
        encoder.num_encoded, seconds, encoder.num_encoded / seconds, 100 * encoder.busy_sec / seconds,
    )  # fmt: skip
    for one, crop in zip(making, crops, strict=True):
        one.draft.figures |= {**crop, "busy_share": encoder.busy_sec / seconds, "images_per_sec": encoder.num_encoded / seconds}


def _crop_figures(encoder: _Encoder, decoders: Decoders, pictures: pa.Table, one: _Resolution, count: int) -> dict[str, float]:
    """What cropping the latents costs, on the first pictures that are not square."""
    longer = [file.rows for file in one.files if file.width != file.height]
    rows = np.sort(np.concatenate([np.zeros(0, np.int64), *longer]))[:count]
    asked = (Wanted(picture, [(one.framing, one.framing.size(picture))]) for picture in pictures.take(rows).to_pylist())
    images = (images_of(found, encoder.autoencoder.device) for found in decoders.read(asked) if found)
    error = crop_error(encoder.autoencoder, images, one.framing.multiple, encoder.tile_px)
    if error is None:
        return {}
    log.info(
        "%d px: a crop of the latents differs from encoding the crop by %.1f %% of their standard deviation, by %.1f %% near the cut",
        one.framing.resolution, 100 * error.interior, 100 * error.border,
    )  # fmt: skip
    return {"crop_error": error.interior, "crop_error_border": error.border}


def _write(encoder: _Encoder, decoders: Decoders, pictures: pa.Table, making: Sequence[_Resolution], bar: Tracker) -> None:
    for band in bands([one.files for one in making], len(pictures)):
        missing = []
        for one, file in ((making[number], file) for number, file in band):
            if one.draft.has(one.name(file)):
                bar.advance(len(file.rows))
            else:
                missing.append((one, file))
        _write_band(encoder, decoders, pictures, missing, bar)


def _write_band(
    encoder: _Encoder, decoders: Decoders, pictures: pa.Table, files: Sequence[tuple[_Resolution, PlannedFile]], bar: Tracker
) -> None:
    with ExitStack() as stack:
        shards = [_Shard(encoder, one, file, stack) for one, file in files]
        owners: deque[list[int]] = deque()
        for found in decoders.read(_wanted(pictures, files, owners)):
            for place, owner in enumerate(owners.popleft()):
                shards[owner].add(found[place] if found else None)
                bar.advance()


def _wanted(pictures: pa.Table, files: Sequence[tuple[_Resolution, PlannedFile]], owners: deque[list[int]]) -> Iterator[Wanted]:
    """The pictures of some files, in order; who wants each goes to `owners`."""
    order = reading_order([file for _, file in files])
    while part := list(islice(order, ASKED_AT_ONCE)):
        rows = pictures.take([row for row, _ in part]).to_pylist()
        for picture, (_, places) in zip(rows, part, strict=True):
            owners.append(places)
            yield Wanted(picture, [(files[place][0].framing, (files[place][1].width, files[place][1].height)) for place in places])


class _Encoder:
    """The autoencoder at work, and how long it was."""

    def __init__(self, autoencoder: Autoencoder, batches: Batches, dtype: torch.dtype, tile_px: int | None) -> None:
        self.autoencoder, self.batches, self.dtype, self.tile_px = autoencoder, batches, dtype, tile_px
        self.busy_sec, self.num_encoded = 0.0, 0

    def run(self, frames: Sequence[Frame]) -> Iterator[tuple[Sequence[Frame], Tensor]]:
        """Batches that fit, with their raw latents (n, C, h, w) as they are stored."""
        for batch, stored in self.batches.run(frames, self._encode):
            self.num_encoded += len(batch)
            yield batch, stored

    def _encode(self, frames: Sequence[Frame]) -> Tensor:
        images = images_of(frames, self.autoencoder.device)
        begun = time.perf_counter()
        stored = self.autoencoder.encode(images, tile_px=self.tile_px).to(self.dtype).cpu()
        self.busy_sec += time.perf_counter() - begun
        return stored


def images_of(frames: Sequence[Frame], device: torch.device) -> Tensor:
    """Frames of one size for the autoencoder: (n, 3, h, w) in [-1, 1], channels last in memory."""
    pixels = torch.from_numpy(np.stack([frame.pixels for frame in frames])).to(device)
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


class _Shard:
    """One file being written: open from its first picture to its last; pictures wait until there is a batch of them."""

    def __init__(self, encoder: _Encoder, one: _Resolution, file: PlannedFile, stack: ExitStack) -> None:
        self.encoder, self.one, self.file = encoder, one, file
        self.form = replace(one.form, height=file.height // one.form.downscale, width=file.width // one.form.downscale)
        self.waiting: list[Frame] = []
        self.left = len(file.rows)
        self.writer: LatentWriter | None = None
        self.counts = dict.fromkeys(("images", "bytes", "upscaled", "failed", "not_finite"), 0)
        self.open_files = ExitStack()
        stack.push(self.open_files)

    def add(self, frame: Frame | None) -> None:
        """The next picture; None if it cannot be had."""
        if self.writer is None:
            self._open()
        self.left -= 1
        if frame is None:
            self.counts["failed"] += 1
        else:
            self.waiting.append(frame)
        if self.waiting and (len(self.waiting) >= self.encoder.batches.size or not self.left):
            self._encode()
        if not self.left:
            self.pending.counts.update({**self.counts, "bytes": self.counts["images"] * self.form.row_bytes})
            self.open_files.close()

    def _open(self) -> None:
        self.pending = self.open_files.enter_context(self.one.draft.write(self.one.name(self.file)))
        self.writer = self.open_files.enter_context(LatentWriter(self.pending.path, self.form, len(self.file.rows)))

    def _encode(self) -> None:
        frames, self.waiting = self.waiting, []
        for batch, stored in self.encoder.run(frames):
            finite = stored.isfinite().flatten(1).all(1)
            for frame in (frame for frame, good in zip(batch, finite.tolist(), strict=True) if not good):
                log.warning("the latent of picture %s is not finite in %s", frame.key, self.form.dtype)
            kept = [frame for frame, good in zip(batch, finite.tolist(), strict=True) if good]
            assert self.writer is not None
            self.writer.add([frame.key for frame in kept], stored[finite], [(frame.width, frame.height) for frame in kept])
            self.counts["images"] += len(kept)
            self.counts["not_finite"] += len(batch) - len(kept)
            self.counts["upscaled"] += sum(self.one.framing.enlarges(frame.width, frame.height) for frame in kept)


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
