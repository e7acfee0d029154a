"""Which pictures are encoded, and their frames: read, decoded, cut and resized in processes of their own, ahead of the encoder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hdm.child import child_environment
from hdm.config import ImageSettings
from hdm.data.tables import num_shards, read_table, shard_name
from hdm.encoding.decoder import DAMAGED, READY, REFUSED, UNREADABLE
from hdm.encoding.frames import Framing
from hdm.errors import DamagedError, DoesNotFitError, HdmError, InputError
from hdm.store import Output

BYTES_A_PIXEL = 24
"""Of a picture while it is decoded: 14 measured for most formats, 22 for WebP with transparency."""

_Answer = tuple[dict[str, str], list[np.ndarray]]
log = logging.getLogger(__name__)


def kept_pictures(download: Output, filter: Output) -> pa.Table:
    """Where each kept picture lies and what it is: key, shard, offset, bytes, start of sha256, width, height.

    Raises:
        InputError: the filter kept no picture.
    """
    tables = []
    for shard in range(num_shards(filter, "scores")):
        scores = read_table(
            filter.file(shard_name("scores", shard)), ["key", "kept", "width", "height"]
        )
        path = download.file(shard_name("samples", shard))
        samples = read_table(path, ["key", "status", "offset", "bytes", "sha256"])
        samples = samples.filter(
            pc.equal(samples.column("status"), "ok")
        )  # nothing else was there to be filtered
        if not scores.column("key").equals(samples.column("key")):
            raise DamagedError(
                "the items of a shard are not those that were filtered",
                where=path,
                do="run again --from download",
            )
        columns = {
            **{name: scores.column(name) for name in ("key", "width", "height")},
            "shard": pa.array(np.full(len(scores), shard, np.int32)),
            **{name: samples.column(name) for name in ("offset", "bytes")},
            "sha256": pc.utf8_slice_codeunits(
                samples.column("sha256"), 0, 16
            ),  # 64 bits find any damage, and take little memory
        }
        tables.append(pa.table(columns).filter(scores.column("kept")))
    if not any(len(table) for table in tables):
        raise InputError(
            "the filter kept no picture, so there is nothing to encode",
            where=filter.path,
            do="lower the filter's thresholds",
        )
    return pa.concat_tables(tables).combine_chunks()  # rows are taken from it by place


@dataclass(frozen=True)
class Frame:
    """A picture ready to be encoded: pixels (h, w, 3) uint8; width and height of the whole picture."""

    key: str
    width: int
    height: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Wanted:
    """A picture (a row of `kept_pictures`), and the frames that are made from one decoding of it: how, and their (width, height)."""

    picture: Mapping[str, Any]
    frames: Sequence[tuple[Framing, tuple[int, int]]]

    @property
    def cost_bytes(self) -> int:
        """Of memory, at most, from the reading of the file to the use of its frames."""
        pixels = self.picture["width"] * self.picture["height"]
        return (
            BYTES_A_PIXEL * pixels
            + self.picture["bytes"]
            + sum(3 * width * height for _, (width, height) in self.frames)
        )


class Decoders:
    """Processes that decode, some pictures ahead of the encoder. Use it in a `with` block.

    Args:
        download: the download stage's output.
        settings: how pictures are decoded.
        ahead: pictures that may be under way or wait, at most.
        max_bytes: of memory for them; a picture that needs more is decoded while no other is.
        count: processes; None: one a core.
    """

    def __init__(
        self,
        download: Output,
        settings: ImageSettings,
        ahead: int,
        max_bytes: float,
        count: int | None = None,
    ) -> None:
        self.download, self.settings, self.ahead, self.max_bytes = (
            download,
            settings,
            ahead,
            max_bytes,
        )
        self.count = count or len(os.sched_getaffinity(0))
        self.idle: SimpleQueue[_Decoder] = SimpleQueue()

    def __enter__(self) -> Decoders:
        for _ in range(self.count):
            self.idle.put(_Decoder(self.settings))
        self.threads = ThreadPoolExecutor(
            self.count, thread_name_prefix="decoder"
        )  # each waits for one process
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(wait=True, cancel_futures=True)
        while not self.idle.empty():
            self.idle.get().stop()

    def read(self, asked: Iterable[Wanted]) -> Iterator[list[Frame] | None]:
        """The frames of each picture, in order; None for a picture that cannot be had.

        Raises:
            DamagedError: a file is not what was downloaded.
        """
        waiting: deque[tuple[int, Future[list[Frame] | None]]] = deque()
        held = 0
        for wanted in asked:
            while waiting and (
                len(waiting) > self.ahead or held + wanted.cost_bytes > self.max_bytes
            ):
                cost, future = waiting.popleft()
                yield future.result()
                held -= cost
            waiting.append((wanted.cost_bytes, self.threads.submit(self._frames, wanted)))
            held += wanted.cost_bytes
        while waiting:
            yield waiting.popleft()[1].result()

    def _frames(self, wanted: Wanted) -> list[Frame] | None:
        key, width, height = (wanted.picture[name] for name in ("key", "width", "height"))
        decoder = self.idle.get()
        try:
            said, frames = decoder.ask_twice(
                self._request(wanted), [size for _, size in wanted.frames]
            )
        except _Ended as ended:
            said, frames = (
                {REFUSED: f"ends the process that decodes it, with code {ended.code}"},
                [],
            )
            if ended.code == -signal.SIGKILL:
                raise DoesNotFitError(
                    f"the process that decodes picture {key} ({width} × {height}) was killed twice, as when memory runs out",
                    where=self._tar(wanted),
                    do="make memory free, lower encode.decode_mb, or lower images.max_megapixels",
                ) from ended
        finally:
            self.idle.put(decoder)
        if UNREADABLE in said:
            raise HdmError(
                f"picture {key} cannot be read: {said[UNREADABLE]}", where=self._tar(wanted)
            )
        if DAMAGED in said:
            do = "find what else is damaged with `hdm verify`"
            raise DamagedError(f"picture {key} {said[DAMAGED]}", where=self._tar(wanted), do=do)
        if REFUSED in said:
            log.warning("picture %s %s", key, said[REFUSED])
            return None
        return [Frame(key, width, height, pixels) for pixels in frames]

    def _request(self, wanted: Wanted) -> dict[str, Any]:
        picture = wanted.picture
        frames = [
            (framing.cut(picture["width"], picture["height"]), size)
            for framing, size in wanted.frames
        ]
        known = {name: picture[name] for name in ("offset", "bytes", "sha256", "width", "height")}
        return {"path": str(self._tar(wanted)), "frames": frames, **known}

    def _tar(self, wanted: Wanted) -> Path:
        return self.download.path / shard_name("images", wanted.picture["shard"], "tar")


class _Ended(Exception):  # noqa: N818  (a state, told to the caller)
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Decoder:
    """One process of `hdm.encoding.decoder`; started anew when it ends."""

    def __init__(self, settings: ImageSettings) -> None:
        self.command = [sys.executable, "-m", "hdm.encoding.decoder", settings.model_dump_json()]
        self.environment = child_environment()
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment
        )
        assert self.process.stdin
        assert self.process.stdout
        self.requests, self.answers, self.ready = self.process.stdin, self.process.stdout, False

    def ask_twice(self, request: dict[str, Any], sizes: Sequence[tuple[int, int]]) -> _Answer:
        """What `hdm.encoding.decoder.answer` gives. The process may have ended for another reason than this picture: then once more.

        Raises:
            _Ended: it ended both times.
        """
        with contextlib.suppress(_Ended):
            return self._ask(request, sizes)
        return self._ask(request, sizes)

    def _ask(self, request: dict[str, Any], sizes: Sequence[tuple[int, int]]) -> _Answer:
        if not self.ready and self.answers.readline() != READY:
            self.stop()
            raise HdmError(
                f"no process that decodes pictures can be started: it ended with code {self.process.returncode}"
            )
        self.ready = True
        try:
            self.requests.write(json.dumps(request).encode() + b"\n")
            self.requests.flush()
            said = json.loads(self._whole(self.answers.readline()))
            return said, [] if said else [self._pixels(*size) for size in sizes]
        except (BrokenPipeError, EOFError):
            self.stop()
            ended = _Ended(self.process.returncode)
            self._start()
            raise ended from None

    def _whole(self, line: bytes) -> bytes:
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def _pixels(self, width: int, height: int) -> np.ndarray:
        data = self.answers.read(3 * width * height)
        if len(data) < 3 * width * height:
            raise EOFError
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def stop(self) -> None:
        """Let it end."""
        with contextlib.suppress(BrokenPipeError):
            self.requests.close()
        self.process.wait()
        self.answers.close()
