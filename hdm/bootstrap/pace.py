"""Fit trainings into the time that a run was given, however fast the machine turns out to be.

A trial estimates how long each part takes, but the clock decides: each part gets its share of the
time that is left when it begins, and a training changes its number of steps if they turn out faster
or slower than expected.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from typing_extensions import TypedDict

from hdm.files import read_record, write_json

LOOK_EVERY = 16  # the speed is measured over 1/16 of the remaining steps, or of the remaining time
TOLERANCE = 0.05  # smaller relative changes of the remaining steps are not made

Now = Callable[[], float]


class Schedule:
    """Progress of a training at each step, from 0 to 1: a straight line with a bend wherever the
    number of steps was changed.

    The learning rate is a function of this progress, so it never jumps and always reaches its end.

    Args:
        bends: (step, total number of steps from there on); the first at step 0.
    """

    def __init__(self, bends: Sequence[tuple[int, int]]) -> None:
        self.bends: list[tuple[int, int]] = []
        self._begins: list[float] = []  # progress at each bend
        for step, num_steps in bends:
            self.bend(step, num_steps)

    @property
    def num_steps(self) -> int:
        """Total number of steps as planned now."""
        return self.bends[-1][1]

    def bend(self, step: int, num_steps: int) -> None:
        """From `step` on, plan `num_steps` in total."""
        self._begins.append(self.progress(step) if self.bends else 0.0)
        self.bends.append((step, num_steps))

    def progress(self, step: int) -> float:
        """Progress in [0, 1] at a step after the last bend."""
        begin, num_steps = self.bends[-1]
        done = self._begins[-1]
        return done + (1 - done) * (step - begin) / (num_steps - begin)


class Pace:
    """Bends a schedule so that its training ends on time.

    Args:
        schedule: of the training.
        step: steps done so far.
        until: when it has to end; None: the schedule stays.
        now: the clock, in seconds.
    """

    def __init__(
        self, schedule: Schedule, step: int, until: float | None, now: Now = time.monotonic
    ) -> None:
        self.schedule = schedule
        self.until = until
        self.now = now
        self._look_again(step)

    def look(self, step: int) -> None:
        """Adjust the schedule; called after each step with the number of steps done."""
        left = self.schedule.num_steps - step
        now = self.now()
        # Due by steps or by time, whichever comes first: a training much slower than planned would
        # not reach that step in time.
        if self.until is None or left <= 0 or (step < self.next and now < self.due):
            return
        seconds = (now - self.since) / (step - self.begin)
        fitting = max(1, int((self.until - now) / max(seconds, 1e-9)))
        if abs(fitting - left) > TOLERANCE * left:
            self.schedule.bend(step, step + fitting)
        self._look_again(step)

    def _look_again(self, step: int) -> None:
        self.begin = step
        self.since = self.now()
        self.next = step + max(1, (self.schedule.num_steps - step) // LOOK_EVERY)
        until = math.inf if self.until is None else self.until
        self.due = self.since + (until - self.since) / LOOK_EVERY


class Budget:
    """The time that a run was given, shared among its parts.

    A resumed run has what was left when it last saved; starting again does not count.

    Args:
        seconds: for the whole run; None: unlimited.
        begun: when the run began, unless `file` says how much it had spent before it was stopped.
        expected: seconds that each part is expected to take, in order.
        file: stores the seconds spent.
        now: the clock, in seconds.
    """

    def __init__(
        self,
        seconds: float | None,
        begun: float,
        expected: Mapping[str, float],
        file: Path,
        now: Now = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.expected = expected
        self.file = file
        self.now = now
        # As if the run had begun that many seconds ago: time between its processes does not count.
        self.begun = now() - _spent(file) if file.exists() else begun
        self.took: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Record in `took` how long a part takes."""
        start = self.now()
        yield
        self.took[part] = self.now() - start

    def until(self, part: str, progress: float = 0.0) -> float | None:
        """When a part has to end of which the share `progress` is done; None: no limit."""
        if (left := self.left()) is None:
            return None
        parts = list(self.expected)
        # The rest of this part and the parts after it share what is left, in proportion to what
        # each is expected to take.
        own = self.expected[part] * (1 - progress)
        after = sum(self.expected[name] for name in parts[parts.index(part) + 1 :])
        return self.now() + max(0.0, left) * own / max(own + after, 1e-9)

    def left(self) -> float | None:
        """Seconds until the end, negative after it; None: no limit."""
        return None if self.seconds is None else self.begun + self.seconds - self.now()

    def save(self) -> None:
        """Store how much is spent, for when the run is resumed."""
        write_json(self.file, {"seconds": self.now() - self.begun})


class _Spent(TypedDict):
    seconds: float


def _spent(file: Path) -> float:
    do = "remove it: the minutes then begin anew, and the trainings go on where they were"
    return read_record(file, _Spent, do)["seconds"]
