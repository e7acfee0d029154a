"""The process that looks into picture files, within limits: `python -m hdm.pictures.decoder
SETTINGS MODULE:FUNCTION`.

A request is one line of JSON on its input (options of the function, the length of the file) and
then the file. The answer is one line of JSON on its output and then its arrays, one after the
other. A fault in an image library's C code ends this process alone, and so does a picture that
takes too long or too much memory. It ends when its input closes, which it also does when the
process that asks dies, even in the middle of a picture.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from hdm.pictures.reading import BadImage

if TYPE_CHECKING:
    from hdm.pictures.settings import ImageSettings

# Sent once the work is imported: a function that cannot be is an error of the start, not of each
# picture.
READY = b"ready\n"
NICE = 5
"""A model may run on the same cores. Its threads wait for each other, so delaying one delays all.
"""
OUT_OF_MEMORY = 71
"""Exit code of a process that reached its memory limit. It ends because what is left of its memory
is fragmented.
"""
WALL = 10
"""Seconds on the clock allowed for each second of computing, since the machine may be busy."""

Answer = tuple[dict[str, Any], list[np.ndarray]]


def main() -> None:
    """Serve the process that started this one."""
    # Validated by the process that asks; see hdm.pictures.reading on the import.
    settings = cast("ImageSettings", SimpleNamespace(**json.loads(sys.argv[1])))
    # Signals to the whole process group are the parent's to handle; this process ends when its
    # input closes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    _limit(resource.RLIMIT_DATA, settings.max_memory_mb << 20)
    # A picture that crashes this process must not leave a core file each time.
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):  # if memory runs out, the kernel should end this process
        Path("/proc/self/oom_score_adj").write_text("500")
    work = _function(sys.argv[2])
    # The answers' pipe under another number, before standard output is silenced.
    answers = os.fdopen(os.dup(1), "wb")
    # Libraries print details of bad pictures without naming the file.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    serve(sys.stdin.buffer, answers, work, settings)


def serve(
    requests: BinaryIO, answers: BinaryIO, work: Callable[..., Answer], settings: ImageSettings
) -> None:
    """Report that everything is loaded, then answer requests until the input closes."""
    answers.write(READY)
    answers.flush()
    for line in requests:
        request = json.loads(line)
        data = requests.read(request["bytes"])
        with _limited(requests.fileno(), settings.max_seconds):
            said, arrays = _answer(work, data, settings, request["options"])
        said["arrays"] = [(str(array.dtype), array.shape) for array in arrays]
        answers.write(json.dumps(said).encode() + b"\n")
        for array in arrays:
            answers.write(np.ascontiguousarray(array).data)
        answers.flush()


def _answer(
    work: Callable[..., Answer], data: bytes, settings: ImageSettings, options: dict[str, Any]
) -> Answer:
    try:
        facts, arrays = work(data, settings, **options)
    except BadImage as refusal:
        if refusal.status == "too_much_memory":
            os._exit(OUT_OF_MEMORY)
        return {"refused": [refusal.status, refusal.message]}, []
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    # A mistake in the function, which the process that asks raises.
    except Exception:  # noqa: BLE001
        return {"error": traceback.format_exc()}, []
    return {"facts": facts}, arrays


def _function(name: str) -> Callable[..., Answer]:
    module, _, function = name.partition(":")
    work: Callable[..., Answer] = getattr(importlib.import_module(module), function)
    return work


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


@contextlib.contextmanager
def _limited(requests: int, seconds: float) -> Iterator[None]:
    """End this process, whatever C code it is in, if it computes for too long or the other end of
    `requests` closes.
    """
    # ITIMER_PROF counts computing alone, so that a busy machine decides nothing. Both signals'
    # default action ends the process inside C code, where a Python handler would not run.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL * seconds)
    _end_on_hangup(requests)
    try:
        yield
    finally:
        _wait_on_hangup(requests)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _end_on_hangup(requests: int) -> None:
    """No request arrives while one is being answered, so any event on the pipe is its end, and the
    SIGIO that it causes ends the process.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(requests, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(requests, fcntl.F_SETFL, fcntl.fcntl(requests, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(requests, 0)
    if poll.poll(0):  # it closed before
        os._exit(0)


def _wait_on_hangup(requests: int) -> None:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(requests, fcntl.F_SETFL, fcntl.fcntl(requests, fcntl.F_GETFL) & ~os.O_ASYNC)


if __name__ == "__main__":
    main()
