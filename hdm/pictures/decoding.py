"""Picture files of unknown origin, read by processes of their own: a bad one costs its own answer
and nothing else.

Processes and not threads: two threads decode no faster than one (decision 4).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from queue import LifoQueue
from typing import Any, cast

import numpy as np

from hdm.child import child_environment
from hdm.closing import Closing
from hdm.errors import DoesNotFitError, HdmError
from hdm.pictures.decoder import OUT_OF_MEMORY, READY
from hdm.pictures.reading import BadImage, decode, inspect, reduced
from hdm.pictures.settings import ImageSettings

BYTES_A_PIXEL = 24
"""Of a picture while it is decoded: 14 measured for most formats, 22 for WebP with transparency."""

STOPPED = "the processes that decode pictures were stopped"

Work = Callable[..., tuple[dict[str, Any], list[np.ndarray]]]
"""What is done with a file: `work(data, settings, **options)` gives facts and arrays. It is a
function of a module, since another process calls it; options and facts are plain JSON values. It
may raise BadImage.
"""


def header(data: bytes, settings: ImageSettings) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Work that reads the header alone: format, width, height."""
    facts = inspect(data, settings)
    return {"format": facts.format, "width": facts.width, "height": facts.height}, []


def pixels(
    data: bytes, settings: ImageSettings, *, reduced_to_px: int | None = None
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Work that decodes: the picture (H, W, 3) uint8, by `hdm.pictures.reading.reduced` where its
    shorter side is at least twice the given.
    """
    decoded = decode(data, settings).pixels
    return {}, [reduced(decoded, reduced_to_px) if reduced_to_px else decoded]


@dataclass(frozen=True)
class Answer:
    """The result of the work."""

    facts: dict[str, Any]
    arrays: list[np.ndarray]


@dataclass(frozen=True)
class Asked:
    """One file to be processed.

    Args:
        name: of the file, for errors.
        load: gives its bytes; called in another thread, and what it raises is raised for this file.
        cost_bytes: of memory that it may take, from its loading to the use of the answer.
        options: of the work.
    """

    name: str
    load: Callable[[], bytes]
    cost_bytes: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


class Decoders(Closing):
    """Processes that read picture files, started when there is something to do. Use it in a `with`
    block.

    A file that is too slow, takes too much memory or ends its process for another reason is refused
    with a status of its own.

    Args:
        settings: how pictures are decoded, and their limits.
        work: what is done with each file.
        count: processes; None: one a core.
    """

    def __init__(self, settings: ImageSettings, work: Work, count: int | None = None) -> None:
        self.settings = settings
        # The cores that this process may use, which may be fewer than the machine has.
        self.count = count or len(os.sched_getaffinity(0))
        self.processes = [_Process(settings, work) for _ in range(self.count)]
        # The last one used comes first, so that no more are started than are busy at once.
        self.idle: LifoQueue[_Process] = LifoQueue()
        for process in self.processes:
            self.idle.put(process)
        # One thread for each process, which it waits for.
        self.threads = ThreadPoolExecutor(self.count, thread_name_prefix="decoder")

    def close(self) -> None:
        # All at once: a picture under way may take long, and nobody waits for it.
        for process in self.processes:
            process.stop()
        self.threads.shutdown(wait=True, cancel_futures=True)
        for process in self.processes:
            process.wait()

    def ask(self, name: str, data: bytes, **options: Any) -> Answer:
        """The result of the work for one file, whose name errors contain. Call it from any thread.

        Raises:
            BadImage: the file is refused.
            DoesNotFitError: the machine's memory does not hold the picture, though the limit allows
                it.
        """
        process = self.idle.get()
        try:
            return process.ask(data, options)
        except DoesNotFitError as error:
            raise DoesNotFitError(error.what, where=f"picture {name}", do=error.do) from error
        finally:
            self.idle.put(process)

    def submit(self, asked: Asked) -> Future[Answer]:
        """Like `ask`, asynchronously."""
        return self.threads.submit(lambda: self.ask(asked.name, asked.load(), **asked.options))

    def map(self, asked: Iterable[Asked], ahead: int | None = None) -> Iterator[Future[Answer]]:
        """The answers in order, each as a future that is done and has an answer or an error.

        Args:
            asked: the files; the next ones are asked for while earlier ones are under way, as long
                as their costs together are within `images.decode_mb`. One that costs more is
                decoded while no other is.
            ahead: at most this many files are under way or waiting; None: four a process.
        """
        waiting: deque[tuple[int, Future[Answer]]] = deque()
        held = 0
        most = self.settings.decode_mb * 1e6
        for one in asked:
            # Make room first: the oldest answer is used before another picture is asked for.
            while waiting and (
                len(waiting) >= (ahead or 4 * self.count) or held + one.cost_bytes > most
            ):
                yield self._done(waiting[0][1])
                held -= waiting.popleft()[0]
            waiting.append((one.cost_bytes, self.submit(one)))
            held += one.cost_bytes
        while waiting:
            yield self._done(waiting.popleft()[1])

    def _done(self, future: Future[Answer]) -> Future[Answer]:
        # Waits without raising: what an error costs is the caller's decision.
        future.exception()
        return future


def picture_cost(width: int | None, height: int | None, num_bytes: int | None) -> int:
    """Bytes of memory that a picture takes at most while it is decoded, its file included.

    Args:
        width: in pixels. Of a picture that was not downloaded, this and the others are None.
        height: likewise.
        num_bytes: of its file.
    """
    return BYTES_A_PIXEL * (width or 0) * (height or 0) + (num_bytes or 0)


class _Ended(Exception):  # noqa: N818  (a state that the caller handles)
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Process:
    """One process of `hdm.pictures.decoder`; started when it is first asked, and anew when it has
    ended.
    """

    def __init__(self, settings: ImageSettings, work: Work) -> None:
        self.settings = settings
        self.work = f"{work.__module__}:{work.__qualname__}"
        arguments = (settings.model_dump_json(), self.work)
        self.command = [sys.executable, "-m", "hdm.pictures.decoder", *arguments]
        self.process: subprocess.Popen[bytes] | None = None
        self.over = False
        self.starting = threading.Lock()

    def ask(self, data: bytes, options: Mapping[str, Any]) -> Answer:
        """An answer from this process; if it ends, for whatever reason, from a new one that has
        done nothing else.
        """
        try:
            return self._ask(data, options)
        except _Ended as ended:
            # Computing time is the picture's own; a second attempt would take as long.
            if ended.code == -signal.SIGPROF:
                raise self._refusal(ended) from None
        # Everything else may be the fault of what the process did before, such as used memory.
        try:
            return self._ask(data, options)
        except _Ended as ended:
            raise self._refusal(ended) from None

    def _ask(self, data: bytes, options: Mapping[str, Any]) -> Answer:
        process = self._started()
        assert process.stdin
        assert process.stdout
        request = {"bytes": len(data), "options": options}
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.write(data)
            process.stdin.flush()
            said = json.loads(_whole(process.stdout.readline()))
            arrays = [self._array(process, *form) for form in said["arrays"]]
        except (BrokenPipeError, EOFError):  # it ended, while reading or before it answered
            code = self._end(process)
            if self.over:
                raise HdmError(STOPPED) from None
            raise _Ended(code) from None
        if "refused" in said:
            raise BadImage(*said["refused"])
        if "error" in said:
            raise HdmError(
                f"{self.work} failed in a process that decodes pictures:\n{said['error']}"
            )
        return Answer(said["facts"], arrays)

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is not None:
            return self.process
        with self.starting:  # or `stop` could miss a process that is just being started
            if self.over:
                raise HdmError(STOPPED)
            process = self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Small arrays are computed with: threads would only wait for each other.
                env={**child_environment(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        assert process.stdout
        if process.stdout.readline() != READY:
            code = self._end(process)
            raise HdmError(
                STOPPED
                if self.over
                else f"no process that decodes pictures can be started: it ended with code {code}"
            )
        return process

    def _array(self, process: subprocess.Popen[bytes], dtype: str, shape: list[int]) -> np.ndarray:
        array = np.empty(shape, dtype)
        answers = cast(BufferedReader, process.stdout)
        if array.size and answers.readinto(array.reshape(-1).view(np.uint8).data) < array.nbytes:
            raise EOFError
        return array

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Forget a process that has ended or is about to; gives its exit code."""
        assert process.stdin
        assert process.stdout
        self.process = None
        # Closing flushes what the process did not read.
        with suppress(BrokenPipeError):
            process.stdin.close()
        code = process.wait()
        process.stdout.close()
        return code

    def _refusal(self, ended: _Ended) -> Exception:
        """What a picture that ends its process is refused for."""
        settings = self.settings
        if ended.code in (-signal.SIGPROF, -signal.SIGALRM):
            return BadImage(
                "too_slow", f"takes more than images.max_seconds = {settings.max_seconds:g}"
            )
        if ended.code == OUT_OF_MEMORY:
            return BadImage(
                "too_much_memory",
                f"takes more than images.max_memory_mb = {settings.max_memory_mb}",
            )
        # Killed by the kernel because the machine's memory ran out. That says nothing about the
        # picture, so the picture may not be left out.
        if ended.code == -signal.SIGKILL:
            return DoesNotFitError(
                "the process that decodes a picture was killed twice, as when memory runs out",
                do="make memory free, or lower images.decode_mb, images.max_memory_mb or threads",
            )
        return BadImage("crashes", f"ends the process that decodes it, with code {ended.code}")

    def stop(self) -> None:
        """End it at once, and start no other."""
        with self.starting:
            self.over = True
            process = self.process
        if process is not None:
            process.kill()

    def wait(self) -> None:
        """Wait for the end of what `stop` ended."""
        if self.process is not None:
            self._end(self.process)


def _whole(line: bytes) -> bytes:
    if not line.endswith(b"\n"):
        raise EOFError
    return line
