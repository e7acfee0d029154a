"""The tracking process, `python -m tasks.tracker STORE`: it writes the events from its input to
MLflow, in their order.

An event that MLflow does not accept at the moment waits and is retried; the warning is given once.
The process ends when its input closes.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path

from hdm.redaction import shown
from tasks.tracking import SETTINGS, Event, Mirror, passing, say

TICK_SEC = 3.0
PATIENCE_SEC = 15.0  # after the end of the run
Arriving = queue.Queue[Event | None]


class Keeper:
    """Events that MLflow has not accepted yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mirror: Mirror | None = None
        self.waiting: list[Event] = []
        self.ended = False
        self.warned = False

    def keep(self, arriving: Arriving) -> None:
        """Send events until there are no more, then those that still wait."""
        while (event := _next(arriving)) is not None:
            if event:
                self.ended = self.ended or event["event"] == "end"
                self.waiting.append(event)
            self.hand_on()
        if not self.ended:  # the flow's process died
            self.waiting.append({"event": "end", "status": "KILLED", "at": time.time()})
        deadline = time.monotonic() + PATIENCE_SEC
        while not self.hand_on() and time.monotonic() < deadline:
            time.sleep(1)

    def hand_on(self) -> bool:
        """Send what waits and what was added to the series. Return whether everything is sent."""
        try:
            self.mirror = self.mirror or Mirror(self.root)
            while self.waiting:
                self._write(self.mirror, self.waiting[0])
                # Only once it is written: otherwise it is sent again, before the later ones.
                self.waiting.pop(0)
            self.mirror.follow()
        except Exception as error:  # noqa: BLE001  (whatever MLflow does, the run goes on)
            self._warn(error)
            return False
        return True

    def _write(self, mirror: Mirror, event: Event) -> None:
        try:
            mirror.handle(event)
        except Exception as error:
            # An error that a retry cannot mend costs this event alone; otherwise it would hold up
            # all later ones.
            if passing(error):
                raise
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        print(shown(f"{type(error).__name__}: {error}"), file=sys.stderr, flush=True)
        if not self.warned:
            text = (
                f"MLflow does not take everything ({type(error).__name__}: {str(error)[:200]}); the"
                " run goes on without"
            )
            say({"warning": text})
        self.warned = True


def main(root: Path) -> None:
    """Track the events that arrive on standard input."""
    # Not a signal but the closing of the pipe ends this process: the last events are still to come.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)  # the stages come first
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    arriving: Arriving = queue.Queue()
    # Events are read as they come: while MLflow hangs, a full pipe would stop the stages.
    threading.Thread(target=_read, args=(arriving,), daemon=True).start()
    Keeper(root).keep(arriving)


def _read(arriving: Arriving) -> None:
    for line in sys.stdin:
        arriving.put(json.loads(line))
    arriving.put(None)


def _next(arriving: Arriving) -> Event | None:
    """The next event, {} if none came for a while, None after the last."""
    try:
        return arriving.get(timeout=TICK_SEC)
    except queue.Empty:
        return {}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
