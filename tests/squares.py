"""A step that takes no time, for those who make its parts: threads, processes, a cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hdm.errors import HdmError
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.store import Draft, Identity

SQUARES = Identity("squares", 1, {})


def fail(log: Path, fault: str) -> None:
    """Once, if the file `armed` lies beside the log: "raise" an error, "kill" this process, or
    "hang" and write its pid to the file `hangs`.
    """
    armed = log.with_name("armed")
    if not armed.exists():
        return
    armed.unlink()
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        log.with_name("hangs").write_text(str(os.getpid()))
        time.sleep(600)
    raise HdmError("planted")


@dataclass(frozen=True)
class Squares(Step[int, None]):
    """The square of every number.

    Args:
        log: a line for each number that was made.
        count: how many numbers.
        pause_sec: that each takes.
        fault: what the first one that makes the number `at` does; see `fail`.
    """

    log: Path
    count: int = 8
    pause_sec: float = 0.0
    fault: str = ""
    at: int = 3

    what = "squares"
    unit = "numbers"

    def plan(self) -> Iterator[Part[int]]:
        for number in range(self.count):
            yield Part(number, {"squares": (f"{number}.json",)})

    @contextmanager
    def open(self) -> Iterator[None]:
        yield

    def make_part(self, part: Part[int], folders: Folders, tools: None, bar: Tracker) -> None:
        if part.task == self.at:
            fail(self.log, self.fault)
        folders["squares"].write_json(f"{part.task}.json", part.task**2, {"numbers": 1})
        with self.log.open("a") as log:
            log.write(f"{part.task}\n")
        time.sleep(self.pause_sec)

    def finish(self, draft: Draft) -> dict[str, int]:
        return {"made": draft.counts()["numbers"]}
