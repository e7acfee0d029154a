"""The autoencoder at work on the files that some resolutions lack: a band of files from one reading
of its pictures, then the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hdm.data.latents import LatentFormat, LatentWriter, latent_file_name
from hdm.encoding.frames import Framing, PlannedFile, bands, reading_order
from hdm.encoding.pictures import Frame, FrameReader, Wanted
from hdm.models.devices import Batches
from hdm.pixels import to_image
from hdm.progress import Tracker
from hdm.store import Draft

ASKED_AT_ONCE = 1000  # pictures whose rows are Python objects at a time
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resolution:
    """One output in the making: its draft, how pictures are framed for it, what its files hold, and
    which there are.
    """

    draft: Draft
    framing: Framing
    form: LatentFormat
    files: list[PlannedFile]
    kind: str = "latents"

    def name(self, file: PlannedFile) -> str:
        return latent_file_name(
            file.height // self.form.downscale,
            file.width // self.form.downscale,
            file.number,
            self.kind,
        )


class Encoder:
    """A model at work on pictures, and how long it was.

    Args:
        encode: images (n, 3, H, W) in [-1, 1] to what is stored of them, (n, C, h, w).
        device: where it wants them.
        batches: how many at once.
        dtype: of what is stored.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        device: torch.device,
        batches: Batches,
        dtype: torch.dtype,
    ) -> None:
        self.encode, self.device, self.batches, self.dtype = encode, device, batches, dtype
        self.busy_sec, self.num_encoded = 0.0, 0

    def run(self, frames: Sequence[Frame]) -> Iterator[tuple[Sequence[Frame], Tensor]]:
        """Batches that fit, with their raw latents (n, C, h, w) as they are stored."""
        begun = time.perf_counter()
        for batch, stored in self.batches.run(frames, self._encode):
            self.busy_sec += time.perf_counter() - begun
            self.num_encoded += len(batch)
            yield batch, stored
            begun = time.perf_counter()

    def _encode(self, frames: Sequence[Frame]) -> Tensor:
        return self.encode(images_of(frames, self.device)).to(self.dtype).cpu()


def images_of(frames: Sequence[Frame], device: torch.device) -> Tensor:
    """Frames of one size for the autoencoder: (n, 3, h, w) in [-1, 1], channels last in memory."""
    pixels = np.stack([frame.pixels for frame in frames])
    return to_image(torch.from_numpy(pixels).to(device))


class _Shard:
    """One file being written: open from its first picture to its last; pictures wait until there is
    a batch of them.
    """

    def __init__(
        self, encoder: Encoder, one: Resolution, file: PlannedFile, stack: ExitStack
    ) -> None:
        self.encoder, self.one, self.file = encoder, one, file
        self.form = replace(
            one.form,
            height=file.height // one.form.downscale,
            width=file.width // one.form.downscale,
        )
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
        if self.waiting and (len(self.waiting) >= self.encoder.batches.at_once or not self.left):
            self._encode()
        if not self.left:
            self.pending.counts.update(
                {**self.counts, "bytes": self.counts["images"] * self.form.row_bytes}
            )
            self.open_files.close()

    def _open(self) -> None:
        self.pending = self.open_files.enter_context(self.one.draft.write(self.one.name(self.file)))
        self.writer = self.open_files.enter_context(
            LatentWriter(self.pending.path, self.form, len(self.file.rows))
        )

    def _encode(self) -> None:
        frames, self.waiting = self.waiting, []
        for batch, stored in self.encoder.run(frames):
            finite = stored.isfinite().flatten(1).all(1)
            for frame in (
                frame for frame, good in zip(batch, finite.tolist(), strict=True) if not good
            ):
                log.warning(
                    "the latent of picture %s is not finite in %s", frame.key, self.form.dtype
                )
            kept = [frame for frame, good in zip(batch, finite.tolist(), strict=True) if good]
            assert self.writer is not None
            self.writer.add(
                [frame.key for frame in kept],
                stored[finite],
                [(frame.width, frame.height) for frame in kept],
            )
            self.counts["images"] += len(kept)
            self.counts["not_finite"] += len(batch) - len(kept)
            self.counts["upscaled"] += sum(
                self.one.framing.enlarges(frame.width, frame.height) for frame in kept
            )


def write(
    encoders: Sequence[Encoder],
    reader: FrameReader,
    pictures: pa.Table,
    making: Sequence[Resolution],
    bar: Tracker,
) -> None:
    """Write the files that the drafts lack. Encoders share them: each takes the next band of files
    when it is done with one.

    Args:
        encoders, reader: what makes latents of pictures.
        pictures: rows of `kept_pictures`, of which the resolutions were planned.
        making: the resolutions, the lowest first.
        bar: told of each picture at each resolution.
    """
    shared = _Shared(_missing(pictures, making, bar))
    if len(encoders) == 1:
        _work(encoders[0], reader, pictures, shared, bar)
        return
    with ThreadPoolExecutor(len(encoders), thread_name_prefix="encoder") as threads:
        working = [
            threads.submit(_work, encoder, reader, pictures, shared, bar) for encoder in encoders
        ]
        try:
            for ended in as_completed(working):
                ended.result()
        finally:  # an error of one, or a signal to all: nobody begins, or ends, another file
            shared.over.set()


Band = list[tuple[Resolution, PlannedFile]]


class _Shared:
    """Bands of files that encoders take one by one, until there are no more or it is over."""

    def __init__(self, bands: Iterator[Band]) -> None:
        self.bands, self.lock, self.over = bands, threading.Lock(), threading.Event()

    def __iter__(self) -> Iterator[Band]:
        while not self.over.is_set():
            with self.lock:
                band = next(self.bands, None)
            if band is None:
                return
            yield band


def _missing(pictures: pa.Table, making: Sequence[Resolution], bar: Tracker) -> Iterator[Band]:
    for band in bands([one.files for one in making], len(pictures)):
        missing = []
        for one, file in ((making[number], file) for number, file in band):
            if one.draft.has(one.name(file)):
                bar.advance(len(file.rows))
            else:
                missing.append((one, file))
        if missing:
            yield missing


def _work(
    encoder: Encoder, reader: FrameReader, pictures: pa.Table, shared: _Shared, bar: Tracker
) -> None:
    for band in shared:
        _write_band(encoder, reader, pictures, band, bar, shared.over)


def _write_band(
    encoder: Encoder,
    reader: FrameReader,
    pictures: pa.Table,
    files: Band,
    bar: Tracker,
    over: threading.Event,
) -> None:
    with ExitStack() as stack:
        shards = [_Shard(encoder, one, file, stack) for one, file in files]
        owners: deque[list[int]] = deque()
        for found in reader.read(_wanted(pictures, files, owners)):
            if over.is_set():
                raise _Over
            for place, owner in enumerate(owners.popleft()):
                shards[owner].add(found[place] if found else None)
                bar.advance()


class _Over(Exception):  # noqa: N818  (what went wrong is told by another)
    """Half a file is left and forgotten."""


def _wanted(pictures: pa.Table, files: Band, owners: deque[list[int]]) -> Iterator[Wanted]:
    """The pictures of some files, in order; who wants each goes to `owners`."""
    order = reading_order([file for _, file in files])
    while part := list(islice(order, ASKED_AT_ONCE)):
        rows = pictures.take([row for row, _ in part]).to_pylist()
        for picture, (_, places) in zip(rows, part, strict=True):
            owners.append(places)
            yield Wanted(
                picture,
                [
                    (files[place][0].framing, (files[place][1].width, files[place][1].height))
                    for place in places
                ],
            )
