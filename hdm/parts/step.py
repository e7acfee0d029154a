"""What a stage says about its parts: which there are, and how to make one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from hdm.progress import Tracker
from hdm.store import Draft, FileRecord, Folder

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
        reads: the files of the outputs' inputs on which it depends, by the input's name. Where they
            are the same for another output of the same settings, its files are taken over. None:
            it depends on more.
    """

    task: Task
    files: Files
    size: int = 1
    reads: Files | None = None


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


@dataclass(frozen=True)
class Work(Generic[Task, Tools]):
    """Parts to be made.

    Args:
        step: makes them.
        parts: which ones.
        folders: where they write.
        bar: their progress.
        take: is given what each finished part wrote, in the process that asked for the parts.
    """

    step: Step[Task, Tools]
    parts: Sequence[Part[Task]]
    folders: Folders
    bar: Tracker
    take: Callable[[Records], None]


def make_one(
    step: Step[Task, Tools], part: Part[Task], folders: Folders, tools: Tools, bar: Tracker
) -> Records:
    # Folders of its own: several threads make parts, and each part reports what it wrote.
    own = {name: Folder(folder.path, folder.digest) for name, folder in folders.items()}
    step.make_part(part, own, tools, bar)
    return {name: folder.records for name, folder in own.items()}
