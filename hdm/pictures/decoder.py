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

READY = b"ready\n"
NICE = 5
"""Where a model runs on the same cores, its threads wait for each other: one that is put off puts
off all.
"""
OUT_OF_MEMORY = 71
"""Exit code of a process whose memory limit was reached; what is left of its memory is in pieces,
so it ends.
"""
WALL = 10
"""Seconds on the clock that a picture may take for each second of computing that it may: the
machine may be busy.
"""

Answer = tuple[dict[str, Any], list[np.ndarray]]


def main() -> None:
    """Serve the process that started this one."""
    # Validated by the process that asks; see hdm.pictures.reading on the import.
    settings = cast("ImageSettings", SimpleNamespace(**json.loads(sys.argv[1])))
    # They may reach it with the process that asks, whose matter they are: its own end is that of
    # its input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    _limit(resource.RLIMIT_DATA, settings.max_memory_mb << 20)
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):  # where memory runs out, let it be this process that ends
        Path("/proc/self/oom_score_adj").write_text("500")
    work = _function(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print about details of bad pictures does not say of which.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    serve(sys.stdin.buffer, answers, work, settings)


def serve(
    requests: BinaryIO, answers: BinaryIO, work: Callable[..., Answer], settings: ImageSettings
) -> None:
    """Say that all is loaded, and answer until there are no more requests."""
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
    return getattr(importlib.import_module(module), function)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


@contextlib.contextmanager
def _limited(requests: int, seconds: float) -> Iterator[None]:
    """End this process, whatever C code it is in, if it computes for too long or the other end of
    `requests` closes.
    """
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
    """No request comes while one is being answered, so that whatever happens on the pipe is its
    end, and SIGIO ends the process.
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
