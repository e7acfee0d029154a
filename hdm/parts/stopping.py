"""Parts that are abandoned once the work is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hdm.progress import Tracker


class Sign(Protocol):
    """Tells whether the work is over."""

    def is_set(self) -> bool: ...


class Event(Sign, Protocol):
    """The common interface of events between threads and between processes."""

    def set(self) -> None: ...


class Over(Exception):  # noqa: N818  (another part says what went wrong)
    """A part is abandoned."""


@dataclass(frozen=True)
class Watched:
    """The progress of a part; reporting to it abandons the part once the work is over."""

    over: Sign
    bar: Tracker | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        if self.over.is_set():
            raise Over
        if self.bar is not None:
            self.bar.advance(count, note)
