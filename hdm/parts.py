"""Parts: the unit of work, of retry and of distribution.

A `Step` says into which parts its work is cut and makes one of them; `make` is the one driver,
which makes the parts that are missing, wherever that is, and finishes the outputs when all are
there.

A finished file is in its output's journal, written by whoever made it, so that no part is made
twice. The manifest is written last, by the process that called `make`.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

from hdm.errors import HdmError, LockedError
from hdm.progress import Tracker, track
from hdm.store import Draft, FileRecord, Folder, Identity, Output, Store

ABANDONED = 3  # exit code
LOOK_SEC = 1.0
GRACE_SEC = 5.0
"""How often a process looks whether all is over, and how long it then has for its part."""

Task = TypeVar("Task")
Tools = TypeVar("Tools")
Files = Mapping[str, tuple[str, ...]]
"""Names of files by the name of their output."""
Folders = Mapping[str, Folder]
"""Where a part writes: a folder by the name of its output."""
Records = Mapping[str, Mapping[str, FileRecord]]
"""What a part wrote: by the name of its output, then of the file."""


@dataclass(frozen=True)
class Part(Generic[Task]):
    """A piece of work that is done at once, and anew if it is interrupted.

    Args:
        task: what its step needs to know; it can be pickled.
        files: what it makes.
        size: how much of the work it is, in the unit of the step's progress.
    """

    task: Task
    files: Files
    size: int = 1


class Step(ABC, Generic[Task, Tools]):
    """Work that is cut into parts, for one output or for several from one reading of the same data.

    A subclass is a dataclass. Its fields, all that can be pickled, are what the parts depend on;
    whatever else it remembers stays in this process.
    """

    unit = "items"

    @property
    @abstractmethod
    def what(self) -> str:
        """The work, as its progress is shown."""

    @abstractmethod
    def plan(self) -> Iterable[Part[Task]]:
        """All parts, made or not, in the order in which they are made."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Tools]:
        """What parts share: models, readers, processes that decode. Opened once in each process,
        and only if a part is missing there.
        """

    @abstractmethod
    def make_part(self, part: Part[Task], folders: Folders, tools: Tools, bar: Tracker) -> None:
        """Write the files of one part.

        What it writes follows from the step's fields and the part alone, in whichever process, and
        goes to `folders` alone. It may be abandoned whenever it tells `bar` of its progress.
        """

    def lacking(self, part: Part[Task], files: Files) -> Part[Task]:
        """What is left of a part of which these files are missing: all of it, unless a step knows
        better.
        """
        return part

    def threads(self, tools: Tools) -> int:
        """How many parts this process makes at the same time."""
        return 1

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        """The summary of an output whose parts are all there; it may write files of the whole."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        state = {}
        for field in fields(self):  # type: ignore[arg-type]
            state[field.name] = getattr(self, field.name)
        return state


def make(
    step: Step[Task, Tools], drafts: Iterable[Draft], processes: int | None = None
) -> list[Output]:
    """Make the parts that are missing, and finish the outputs.

    Args:
        step: the work.
        drafts: of the outputs that it makes.
        processes: so many processes make the parts; None: this one does.

    Raises:
        HdmError: one of the processes ended; what was finished is kept.
    """
    by_name = {draft.identity.name: draft for draft in drafts}
    parts = list(step.plan())
    missing = _missing(step, parts, by_name)
    if missing:
        folders = {name: Folder(draft.path, draft.digest) for name, draft in by_name.items()}
        total = sum(part.size for part in parts)
        done = total - sum(part.size for part in missing)

        def take(records: Records) -> None:
            for name, written in records.items():
                by_name[name].records.update(written)

        with track(step.what, total or None, step.unit, done=done) as bar:
            if processes is None:
                _make_here(step, missing, folders, bar, take)
            else:
                _make_in_pool(step, missing, folders, bar, take, processes)
    for part in parts:
        _check_made(step, part, by_name)
    return [draft.commit(step.finish(draft)) for draft in by_name.values()]


@contextlib.contextmanager
def drafts_of(
    store: Store, identity: Identity, also: Iterable[Identity] = ()
) -> Iterator[dict[str, Draft]]:
    """Drafts by name: of an output, and of those others that the store lacks and no other run
    makes.

    Raises:
        LockedError: another process works on the first one.
    """
    with ExitStack() as stack:
        drafts = {identity.name: stack.enter_context(store.draft(identity))}
        for other in also:
            with contextlib.suppress(LockedError):
                if store.find(other) is None:
                    drafts[other.name] = stack.enter_context(store.draft(other))
        yield drafts


def _missing(
    step: Step[Task, Tools], parts: Sequence[Part[Task]], drafts: Mapping[str, Draft]
) -> list[Part[Task]]:
    found = []
    for part in parts:
        lacking = {}
        for output, names in part.files.items():
            missing = tuple(name for name in names if not drafts[output].has(name))
            if missing:
                lacking[output] = missing
        if lacking:
            found.append(step.lacking(part, lacking))
    return found


def _check_made(step: Step[Any, Any], part: Part[Any], drafts: Mapping[str, Draft]) -> None:
    for output, names in part.files.items():
        for name in names:
            if not drafts[output].has(name):
                raise RuntimeError(f"{type(step).__name__} did not write {output}/{name}")


def _make_one(
    step: Step[Task, Tools], part: Part[Task], folders: Folders, tools: Tools, bar: Tracker
) -> Records:
    own = {name: Folder(folder.path, folder.digest) for name, folder in folders.items()}
    step.make_part(part, own, tools, bar)
    return {name: folder.records for name, folder in own.items()}


def _make_here(
    step: Step[Task, Tools],
    parts: Sequence[Part[Task]],
    folders: Folders,
    bar: Tracker,
    take: Callable[[Records], None],
) -> None:
    with step.open() as tools:
        count = min(step.threads(tools), len(parts))
        if count == 1:
            for part in parts:
                take(_make_one(step, part, folders, tools, bar))
            return
        over = threading.Event()
        watched = _Watched(over, bar)
        with ThreadPoolExecutor(count, thread_name_prefix="parts") as threads:
            working = [
                threads.submit(_make_one, step, part, folders, tools, watched) for part in parts
            ]
            _take_all(working, over, lambda future: take(future.result()))


def _make_in_pool(
    step: Step[Task, Tools],
    parts: Sequence[Part[Task]],
    folders: Folders,
    bar: Tracker,
    take: Callable[[Records], None],
    processes: int,
) -> None:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    over = _Shared(context.RawValue(ctypes.c_bool, False))
    try:
        with ProcessPoolExecutor(processes, context, _begin_process, (step, over)) as pool:
            working = {pool.submit(_make_in_process, part, folders): part for part in parts}

            def counted(future: Future[Records]) -> None:
                bar.advance(working[future].size)
                take(future.result())

            _take_all(working, over, counted)
    except BrokenProcessPool as error:
        raise HdmError(
            f"a process that makes parts of {step.what} ended",
            do="run the same command again: finished parts are kept",
        ) from error


def _take_all(
    working: Collection[Future[Records]], over: _Event, take: Callable[[Future[Records]], None]
) -> None:
    """Take what is made as it is done. After an error of one part, or a signal, nobody begins, or
    ends, another.
    """
    try:
        for future in as_completed(working):
            take(future)
    finally:
        over.set()
        for future in working:
            future.cancel()


class _Event(Protocol):
    """What threads' and processes' events have in common."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...


@dataclass(frozen=True)
class _Shared:
    """An event of several processes. It has no lock, which a process that is killed could hold."""

    flag: Any

    def is_set(self) -> bool:
        return bool(self.flag.value)

    def set(self) -> None:
        self.flag.value = True


class _Over(Exception):  # noqa: N818  (another part says what went wrong)
    """A part is abandoned."""


@dataclass(frozen=True)
class _Watched:
    """Progress of a part that is abandoned when all is over."""

    over: _Event
    bar: Tracker | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        if self.over.is_set():
            raise _Over
        if self.bar is not None:
            self.bar.advance(count, note)


@dataclass(frozen=True)
class _Here:
    """What a process of a pool makes parts with."""

    step: Step[Any, Any]
    tools: Any
    over: _Event
    open_tools: ExitStack


_here: _Here | None = None


def _begin_process(step: Step[Any, Any], over: _Event) -> None:
    global _here
    # The process that asks has it too, and sets `over`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_in_time, args=(over,), name="end-in-time", daemon=True).start()
    _compute_with_one_thread()
    stack = ExitStack()
    _here = _Here(step, stack.enter_context(step.open()), over, stack)


def _compute_with_one_thread() -> None:
    """As the stages compute: sums are rounded by how many threads there are.

    Importing torch takes 2 s, and many steps do without it: it reads the variable if it comes.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


def _end_in_time(over: _Event) -> None:
    """End this process with the one that asks, and some time after all is over: nobody waits for a
    part that does not tell of its progress.
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
    return _make_one(_here.step, part, folders, _here.tools, _Watched(_here.over))
