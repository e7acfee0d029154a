"""A model at work on pictures: a band of files from one reading of its pictures, then the next."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import InitVar, dataclass, field, replace
from itertools import islice
from queue import Queue

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hdm.data.latent_files import DTYPES, LatentFormat, LatentWriter, latent_file_name
from hdm.encoding.frames import Framing, PlannedFile, bands, plan_files, reading_order
from hdm.encoding.pictures import Frame, FrameReader, Wanted
from hdm.models.devices import Batches
from hdm.parts import Files, Folders, Part, Step
from hdm.pixels import to_image
from hdm.progress import Tracker
from hdm.store import Folder

ASKED_AT_ONCE = 1000  # pictures whose rows are Python objects at a time
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resolution:
    """What one output holds: how pictures are framed for it, the form of its files, and which there
    are.

    Args:
        output: its name.
        kind: how its files' names begin.
    """

    output: str
    framing: Framing
    form: LatentFormat
    files: list[PlannedFile]
    kind: str = "latents"

    @classmethod
    def of(
        cls,
        pictures: pa.Table,
        output: str,
        framing: Framing,
        form: LatentFormat,
        shard_bytes: float,
        kind: str = "latents",
    ) -> Resolution:
        """Of pictures with their `width` and `height`, in files of about so many bytes."""
        widths, heights = framing.sizes(
            pictures.column("width").to_numpy(), pictures.column("height").to_numpy()
        )
        files = plan_files(widths, heights, bytes_a_pixel(form), shard_bytes)
        return cls(output, framing, form, list(files), kind)

    def name(self, file: PlannedFile) -> str:
        return latent_file_name(
            file.height // self.form.downscale,
            file.width // self.form.downscale,
            file.number,
            self.kind,
        )

    @property
    def num_bytes(self) -> int:
        """Of all files' values."""
        pixels = sum(len(file.rows) * file.width * file.height for file in self.files)
        return int(pixels * bytes_a_pixel(self.form))


def bytes_a_pixel(form: LatentFormat) -> float:
    """Of what is stored, for each pixel of the picture."""
    return float(form.channels * DTYPES[form.dtype].itemsize / form.downscale**2)


@dataclass(eq=False)
class Encoder:
    """A model at work on pictures, and how long it was.

    Args:
        encode: images (n, 3, H, W) in [-1, 1] to what is stored of them, (n, C, h, w).
        device: where it wants them.
        batches: how many at once.
        dtype: of what is stored.
        busy_sec: how long it has been computing.
        num_encoded: pictures so far.
    """

    encode: Callable[[Tensor], Tensor]
    device: torch.device
    batches: Batches
    dtype: torch.dtype
    busy_sec: float = field(default=0.0, init=False)
    num_encoded: int = field(default=0, init=False)

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


@dataclass(eq=False)
class _Shard:
    """One file being written: open from its first picture to its last; pictures wait until there is
    a batch of them.
    """

    encoder: Encoder
    one: Resolution
    file: PlannedFile
    folder: Folder
    stack: InitVar[ExitStack]

    def __post_init__(self, stack: ExitStack) -> None:
        form = self.one.form
        height = self.file.height // form.downscale
        width = self.file.width // form.downscale
        self.form = replace(form, height=height, width=width)
        self.waiting: list[Frame] = []
        self.left = len(self.file.rows)
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
        self.pending = self.open_files.enter_context(self.folder.write(self.one.name(self.file)))
        self.writer = self.open_files.enter_context(
            LatentWriter(self.pending.path, self.form, len(self.file.rows))
        )

    def _encode(self) -> None:
        frames = self.waiting
        self.waiting = []
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


Band = list[tuple[int, PlannedFile]]
"""Files that are made from one reading of their pictures, each with the number of its resolution."""


@dataclass(frozen=True)
class Encoders:
    """Models that share the work, and what reads pictures for them."""

    reader: FrameReader
    every: Sequence[Encoder]
    free: Queue[Encoder] = field(default_factory=Queue)

    def __post_init__(self) -> None:
        for encoder in self.every:
            self.free.put(encoder)

    @contextmanager
    def one(self) -> Iterator[Encoder]:
        """One that is free."""
        encoder = self.free.get()
        try:
            yield encoder
        finally:
            self.free.put(encoder)


class Encoding(Step[Band, Encoders]):
    """Makes the files of some resolutions, band by band. Each model takes the next band when it is
    done with one.
    """

    unit = "images"

    @property
    @abstractmethod
    def pictures(self) -> pa.Table:
        """Rows of `kept_pictures`."""

    @property
    @abstractmethod
    def making(self) -> Sequence[Resolution]:
        """The resolutions, the lowest first."""

    @property
    def what(self) -> str:
        return " ".join(one.output for one in self.making)

    def plan(self) -> Iterator[Part[Band]]:
        count = len(self.pictures)
        for one in self.making:
            log.info(
                "%s: %d pictures, %.1f MB, %d bytes a picture",
                one.output,
                count,
                one.num_bytes / 1e6,
                one.num_bytes / count,
            )
        for band in bands([one.files for one in self.making], len(self.pictures)):
            yield self._part(band)

    def lacking(self, part: Part[Band], files: Files) -> Part[Band]:
        """The same pictures are read for those files that are missing."""
        return self._part(
            [
                (number, file)
                for number, file in part.task
                if self.making[number].name(file) in files.get(self.making[number].output, ())
            ]
        )

    def _part(self, band: Band) -> Part[Band]:
        files: dict[str, tuple[str, ...]] = {}
        for number, file in band:
            one = self.making[number]
            files[one.output] = (*files.get(one.output, ()), one.name(file))
        return Part(band, files, sum(len(file.rows) for _, file in band))

    def threads(self, tools: Encoders) -> int:
        return len(tools.every)

    def make_part(self, part: Part[Band], folders: Folders, tools: Encoders, bar: Tracker) -> None:
        files = [(self.making[number], file) for number, file in part.task]
        with tools.one() as encoder, ExitStack() as stack:
            shards = [_Shard(encoder, one, file, folders[one.output], stack) for one, file in files]
            owners: deque[list[int]] = deque()
            for found in tools.reader.read(_wanted(self.pictures, files, owners)):
                for place, owner in enumerate(owners.popleft()):
                    bar.advance()  # first: where all is over, this file is not ended
                    shards[owner].add(found[place] if found else None)


def _wanted(
    pictures: pa.Table,
    files: Sequence[tuple[Resolution, PlannedFile]],
    owners: deque[list[int]],
) -> Iterator[Wanted]:
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
