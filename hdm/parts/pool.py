"""Parts made in a pool of processes of this machine."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from hdm.errors import HdmError
from hdm.parts.here import take_all
from hdm.parts.one_thread import compute_with_one_thread
from hdm.parts.step import Folders, Part, Records, Step, Task, Tools, Work, make_one
from hdm.parts.stopping import Event, Watched

ABANDONED = 3  # exit code
LOOK_SEC = 1.0
GRACE_SEC = 5.0
"""How often a process checks whether the work is over, and how long it then has for its part."""


def make_in_pool(work: Work[Task, Tools], processes: int) -> None:
    """Make the parts in so many processes.

    Raises:
        HdmError: one of them ended; finished parts are kept.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    over = _Shared(context.RawValue(ctypes.c_bool, False))
    try:
        with ProcessPoolExecutor(processes, context, _begin_process, (work.step, over)) as pool:
            working = {}
            for part in work.parts:
                working[pool.submit(_make_in_process, part, work.folders)] = part

            def counted(future: Future[Records]) -> None:
                work.bar.advance(working[future].size)
                work.take(future.result())

            take_all(working, over, counted)
    except BrokenProcessPool as error:
        raise HdmError(
            f"a process that makes parts of {work.step.what} ended",
            do="run the same command again: finished parts are kept",
        ) from error


@dataclass(frozen=True)
class _Shared:
    """An event between processes. It has no lock, because a killed process could leave one held."""

    flag: Any

    def is_set(self) -> bool:
        return bool(self.flag.value)

    def set(self) -> None:
        self.flag.value = True


@dataclass(frozen=True)
class _Here:
    """The state with which a process of a pool makes parts."""

    step: Step[Any, Any]
    tools: Any
    over: Event
    open_tools: ExitStack


_here: _Here | None = None


def _begin_process(step: Step[Any, Any], over: Event) -> None:
    global _here
    # Ctrl-C reaches the parent process too, which sets `over`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_in_time, args=(over,), name="end-in-time", daemon=True).start()
    compute_with_one_thread()
    # A pool hands its functions only their arguments, so the tools lie in a global, open until the
    # process ends.
    stack = ExitStack()
    _here = _Here(step, stack.enter_context(step.open()), over, stack)


def _end_in_time(over: Event) -> None:
    """End this process when its parent has ended, or some time after the work is over, so that
    nobody waits for a part that does not report progress.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    while not over.is_set():
        if not parent.is_alive():
            os._exit(ABANDONED)
        time.sleep(LOOK_SEC)
    time.sleep(GRACE_SEC)
    os._exit(ABANDONED)


def _make_in_process(part: Part[Any], folders: Folders) -> Records:
    assert _here is not None
    return make_one(_here.step, part, folders, _here.tools, Watched(_here.over))
