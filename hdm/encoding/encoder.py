"""Encode pictures by a model, band by band: each band of files is made from one reading of its
pictures.
"""

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
from hdm.encoding.frames import Framing, PlannedFile, plan_bands, plan_files, reading_order
from hdm.encoding.pictures import Frame, FrameReader, Request
from hdm.models.devices import Batches
from hdm.parts import Files, Folders, Part, Step
from hdm.pixels import to_image
from hdm.progress import Tracker
from hdm.store import Folder

ASKED_AT_ONCE = 1000  # pictures whose rows are Python objects at a time
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resolution:
    """One output: how pictures are framed for it, the format of its files, and the planned files.

    Args:
        output: its name.
        kind: prefix of its files' names.
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
        groups: np.ndarray | None = None,
    ) -> Resolution:
        """Plan an output of pictures with `width` and `height`, in files of about this size, by
        group (`plan_files`).
        """
        widths, heights = framing.sizes(
            pictures.column("width").to_numpy(), pictures.column("height").to_numpy()
        )
        files = plan_files(widths, heights, bytes_a_pixel(form), shard_bytes, groups)
        return cls(output, framing, form, list(files), kind)

    def name(self, file: PlannedFile) -> str:
        return latent_file_name(
            file.height // self.form.downscale,
            file.width // self.form.downscale,
            file.number,
            self.kind,
        )

    @property
    def num_pictures(self) -> int:
        """Number of pictures in all files."""
        return sum(len(file.rows) for file in self.files)

    @property
    def num_bytes(self) -> int:
        """Size of the values in all files."""
        pixels = sum(len(file.rows) * file.width * file.height for file in self.files)
        return int(pixels * bytes_a_pixel(self.form))


def bytes_a_pixel(form: LatentFormat) -> float:
    """Stored bytes for each pixel of the picture."""
    return float(form.channels * DTYPES[form.dtype].itemsize / form.downscale**2)


@dataclass(eq=False)
class Encoder:
    """A model that encodes pictures, and a count of its working time.

    Args:
        encode: from images (n, 3, H, W) in [-1, 1] to stored values (n, C, h, w).
        device: device of the images.
        batches: the batch size.
        dtype: of the stored values.
        busy_sec: seconds of computation so far.
        num_encoded: number of pictures so far.
    """

    encode: Callable[[Tensor], Tensor]
    device: torch.device
    batches: Batches
    dtype: torch.dtype
    busy_sec: float = field(default=0.0, init=False)
    num_encoded: int = field(default=0, init=False)

    def run(self, frames: Sequence[Frame]) -> Iterator[tuple[Sequence[Frame], Tensor]]:
        """Yield batches that fit, with their raw latents (n, C, h, w) as they are stored."""
        # The clock stops during each yield, in which the caller writes.
        begun = time.perf_counter()
        for batch, latents in self.batches.run(frames, self._encode):
            self.busy_sec += time.perf_counter() - begun
            self.num_encoded += len(batch)
            yield batch, latents
            begun = time.perf_counter()

    def _encode(self, frames: Sequence[Frame]) -> Tensor:
        return self.encode(images_of(frames, self.device)).to(self.dtype).cpu()


def images_of(frames: Sequence[Frame], device: torch.device) -> Tensor:
    """Frames of one size as (n, 3, h, w) in [-1, 1], channels last in memory."""
    pixels = np.stack([frame.pixels for frame in frames])
    return to_image(torch.from_numpy(pixels).to(device))


@dataclass(eq=False)
class _Shard:
    """One file in progress, open from its first picture to its last. Pictures wait until there is a
    full batch.
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
        # A batch holds pictures of one file only, so a picture's rounding does not depend on which
        # other files are made with it.
        self.waiting: list[Frame] = []
        self.left = len(self.file.rows)
        self.writer: LatentWriter | None = None
        self.counts = dict.fromkeys(("images", "bytes", "upscaled", "failed", "not_finite"), 0)
        # The file is closed as soon as it is complete, so that few are open. After an error the
        # outer stack closes it, and nothing unfinished takes its name.
        self.open_files = ExitStack()
        stack.push(self.open_files)

    def add(self, frame: Frame | None) -> None:
        """Add the next picture; None if it cannot be decoded."""
        # A file is opened with its first picture, since a band has many files and writes few of
        # them at a time.
        if self.writer is None:
            self._open()
        # Failed pictures count too: the file is complete when no picture is left to come.
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
        for batch, latents in self.encoder.run(frames):
            # float16 overflows beyond 65,504.
            finite = latents.isfinite().flatten(1).all(1)
            keys = []
            sizes = []
            for frame, is_finite in zip(batch, finite.tolist(), strict=True):
                if not is_finite:
                    log.warning(
                        "the latent of picture %s is not finite in %s", frame.key, self.form.dtype
                    )
                    self.counts["not_finite"] += 1
                    continue
                keys.append(frame.key)
                sizes.append((frame.width, frame.height))
                self.counts["upscaled"] += self.one.framing.enlarges(frame.width, frame.height)
            assert self.writer is not None
            self.writer.add(keys, latents[finite], sizes)
            self.counts["images"] += len(keys)


Band = list[tuple[int, PlannedFile]]
"""Files that are made from one reading of their pictures, each with the index of its resolution."""


@dataclass(frozen=True)
class Encoders:
    """Models that share the work, and the reader of their pictures."""

    reader: FrameReader
    every: Sequence[Encoder]
    free: Queue[Encoder] = field(default_factory=Queue)

    def __post_init__(self) -> None:
        for encoder in self.every:
            self.free.put(encoder)

    @contextmanager
    def one(self) -> Iterator[Encoder]:
        """Borrow a free encoder, waiting for one if necessary."""
        encoder = self.free.get()
        try:
            yield encoder
        finally:
            self.free.put(encoder)


class Encoding(Step[Band, Encoders]):
    """Make the files of some resolutions, band by band. Each model takes the next band when it has
    finished one.
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
        for one in self.making:
            count = one.num_pictures
            log.info(
                "%s: %d pictures, %.1f MB, %d bytes a picture",
                one.output,
                count,
                one.num_bytes / 1e6,
                one.num_bytes / count,
            )
        for band in plan_bands([one.files for one in self.making], len(self.pictures)):
            yield self._part(band)

    def lacking(self, part: Part[Band], files: Files) -> Part[Band]:
        """The same band with only its missing files."""
        missing = []
        for number, file in part.task:
            resolution = self.making[number]
            if resolution.name(file) in files.get(resolution.output, ()):
                missing.append((number, file))
        return self._part(missing)

    def _part(self, band: Band) -> Part[Band]:
        files: dict[str, tuple[str, ...]] = {}
        for number, file in band:
            one = self.making[number]
            files[one.output] = (*files.get(one.output, ()), one.name(file))
        # A picture counts once for each of its files, as `make_part` advances the bar.
        return Part(band, files, sum(len(file.rows) for _, file in band))

    def threads(self, tools: Encoders) -> int:
        return len(tools.every)

    def make_part(self, part: Part[Band], folders: Folders, tools: Encoders, bar: Tracker) -> None:
        files = [(self.making[number], file) for number, file in part.task]
        # Each model works on one band at a time, and takes the next one when it is free.
        with tools.one() as encoder, ExitStack() as stack:
            shards = [_Shard(encoder, one, file, folders[one.output], stack) for one, file in files]
            # Requests run ahead of their frames, so `owners` keeps the files that each picture is
            # for, in order.
            owners: deque[list[int]] = deque()
            for frames in tools.reader.read(_requests(self.pictures, files, owners)):
                for number, owner in enumerate(owners.popleft()):
                    # First, since it raises if the work is being stopped: the file is then not
                    # finished.
                    bar.advance()
                    shards[owner].add(frames[number] if frames else None)


def _requests(
    pictures: pa.Table,
    files: Sequence[tuple[Resolution, PlannedFile]],
    owners: deque[list[int]],
) -> Iterator[Request]:
    """Requests for the pictures of some files, in order. The indices of the files that need each
    picture are appended to `owners`.
    """
    order = reading_order([file for _, file in files])
    # All rows as Python objects would fill the memory, so they are converted some at a time.
    while part := list(islice(order, ASKED_AT_ONCE)):
        rows = pictures.take([row for row, _ in part]).to_pylist()
        for picture, (_, numbers) in zip(rows, part, strict=True):
            owners.append(numbers)
            frames = []
            for number in numbers:
                resolution, file = files[number]
                frames.append((resolution.framing, (file.width, file.height)))
            yield Request(picture, frames)
