"""The progress of long work: on a terminal a bar with rate and time left, elsewhere a line every
30 s; and the library's log.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hdm.messages import Terminal, guard_output, say

LINE_EVERY_SEC = 30.0


class Tracker(Protocol):
    """What long work reports to."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more items are done; `note` is shown at the end of the line (a loss, say)."""
        ...


class _Lines:
    """A line every 30 s, for logs."""

    def __init__(self, what: str, total: int | None, unit: str, done: int) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.done = done
        self.before = done
        self.start = time.monotonic()
        self.last = self.start

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < LINE_EVERY_SEC:
            return
        self.last = now
        rate = (self.done - self.before) / max(now - self.start, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate else ""
        of = f"/{self.total}" if self.total else ""
        line = f"{self.what}: {self.done}{of} {self.unit}, {rate:.1f}/s{left} {note}"
        say(line.rstrip(), sys.stderr)


class _Bar:
    def __init__(self, progress: Progress, what: str, total: int | None, done: int) -> None:
        self.progress = progress
        self.start = time.monotonic()
        self.task = progress.add_task(what, total=total, completed=done, rate="", note="")
        self.done = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        self.progress.update(self.task, advance=count, rate=f"{rate:.1f}/s", note=note)


@contextmanager
def track(
    what: str, total: int | None = None, unit: str = "items", done: int = 0
) -> Iterator[Tracker]:
    """Show the progress of `total` items of work called `what` on stderr, of which `done` were done
    before: they do not count in the rate.
    """
    console = Terminal(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, total, unit, done)
        return
    columns = (
        TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, what, total, done)


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to the current standard error, which may have been replaced or closed since the
    handler was made.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def show_log() -> None:
    """The library's messages, as plain lines on standard error."""
    guard_output()
    lines = _ToStderr()
    lines.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("hdm")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [lines]
