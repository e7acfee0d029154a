"""Parts: the unit of work, of retry and of distribution.

A `Step` divides its work into parts and makes one part. `make` is the one driver: it makes the
missing parts, in this process or in others, and finishes the outputs when all parts exist.

The process that makes a file also writes it into its output's journal, so that no part is made
twice. The process that called `make` writes the manifest last.
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
"""How often a process checks whether the work is over, and how long it then has for its part."""

Task = TypeVar("Task")
Tools = TypeVar("Tools")
Files = Mapping[str, tuple[str, ...]]
"""File names, by output name."""
Folders = Mapping[str, Folder]
"""Where a part writes: folders, by output name."""
Records = Mapping[str, Mapping[str, FileRecord]]
"""What a part wrote: by output name, then by file name."""


@dataclass(frozen=True)
class Part(Generic[Task]):
    """A unit of work. If it is interrupted, all of it is done again.

    Args:
        task: what its step needs to make it; must be picklable.
        files: the files that it makes.
        size: its amount of work, in the unit of the step's progress.
    """

    task: Task
    files: Files
    size: int = 1


class Step(ABC, Generic[Task, Tools]):
    """Work that is divided into parts, for one output, or for several that read the same data once.

    Subclasses are dataclasses. Parts depend on the fields alone, which must be picklable; other
    attributes stay in this process.
    """

    unit = "items"

    @property
    @abstractmethod
    def what(self) -> str:
        """The description of the work in its progress display."""

    @abstractmethod
    def plan(self) -> Iterable[Part[Task]]:
        """All parts, made or not, in the order of making them."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Tools]:
        """What parts share: models, readers, decoding processes. Opened once in each process that
        makes parts, and only if a part is missing.
        """

    @abstractmethod
    def make_part(self, part: Part[Task], folders: Folders, tools: Tools, bar: Tracker) -> None:
        """Write the files of one part.

        The files depend only on the step's fields and the part, whichever process makes them, and
        go only to `folders`. Any call of `bar` may abandon the part.
        """

    def lacking(self, part: Part[Task], files: Files) -> Part[Task]:
        """The part to make when only these of its files are missing: by default, all of it."""
        return part

    def threads(self, tools: Tools) -> int:
        """How many parts this process makes at the same time."""
        return 1

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        """The summary of an output whose parts are all finished. It may also write files that need
        all parts.
        """
        return {}

    def __getstate__(self) -> dict[str, Any]:
        # Cached properties may hold models or open files, which other processes must open anew.
        state = {}
        for field in fields(self):  # type: ignore[arg-type]
            state[field.name] = getattr(self, field.name)
        return state


def make(
    step: Step[Task, Tools], drafts: Iterable[Draft], processes: int | None = None
) -> list[Output]:
    """Make the missing parts, and finish the outputs.

    Args:
        step: the work.
        drafts: of the outputs that it makes.
        processes: the number of processes that make the parts; None: this process makes them.

    Raises:
        HdmError: one of the processes ended; finished parts are kept.
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
    # Before any manifest: a step that forgot a file must not finish its output.
    for part in parts:
        _check_made(step, part, by_name)
    return [draft.commit(step.finish(draft)) for draft in by_name.values()]


@contextlib.contextmanager
def drafts_of(
    store: Store, identity: Identity, also: Iterable[Identity] = ()
) -> Iterator[dict[str, Draft]]:
    """Drafts by name: of an output, and of those `also` outputs that the store lacks and no other
    run is making.

    Raises:
        LockedError: another process works on the first output.
    """
    with ExitStack() as stack:
        drafts = {identity.name: stack.enter_context(store.draft(identity))}
        for other in also:
            # Making these here only saves a second reading; whoever holds the lock makes them too.
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
    # Folders of its own: several threads make parts, and each part reports what it wrote.
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
            working = []
            for part in parts:
                working.append(threads.submit(_make_one, step, part, folders, tools, watched))
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
    """Pass on each finished part. After an error in one part, or a signal, no other part begins,
    and those in progress are abandoned.
    """
    try:
        for future in as_completed(working):
            take(future)
    finally:
        over.set()
        for future in working:
            # Parts that have not begun; those in progress see `over`.
            future.cancel()


class _Event(Protocol):
    """The common interface of events between threads and between processes."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...


@dataclass(frozen=True)
class _Shared:
    """An event between processes. It has no lock, because a killed process could leave one held."""

    flag: Any

    def is_set(self) -> bool:
        return bool(self.flag.value)

    def set(self) -> None:
        self.flag.value = True


class _Over(Exception):  # noqa: N818  (another part says what went wrong)
    """A part is abandoned."""


@dataclass(frozen=True)
class _Watched:
    """The progress of a part; reporting to it abandons the part once the work is over."""

    over: _Event
    bar: Tracker | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        if self.over.is_set():
            raise _Over
        if self.bar is not None:
            self.bar.advance(count, note)


@dataclass(frozen=True)
class _Here:
    """The state with which a process of a pool makes parts."""

    step: Step[Any, Any]
    tools: Any
    over: _Event
    open_tools: ExitStack


_here: _Here | None = None


def _begin_process(step: Step[Any, Any], over: _Event) -> None:
    global _here
    # Ctrl-C reaches the parent process too, which sets `over`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_in_time, args=(over,), name="end-in-time", daemon=True).start()
    _compute_with_one_thread()
    # A pool hands its functions only their arguments, so the tools lie in a global, open until the
    # process ends.
    stack = ExitStack()
    _here = _Here(step, stack.enter_context(step.open()), over, stack)


def _compute_with_one_thread() -> None:
    """Use one thread, as stages do in the parent process: the number of threads changes how sums
    are rounded.

    Importing torch takes 2 s, and many steps do not need it. If it is imported later, it reads the
    variable.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


def _end_in_time(over: _Event) -> None:
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
    return _make_one(_here.step, part, folders, _here.tools, _Watched(_here.over))
