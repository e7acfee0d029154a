"""Tell the tracking process what happens in a run: one JSON line an event, down a pipe.

MLflow itself is in `tasks.tracker`, a process of its own: its seconds of import, its log noise and
a server that hangs cost the stages nothing, and when the pipe closes it finishes and ends, however
this process died.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hdm.child import child_environment
from hdm.redaction import redacted_value
from tasks.records import STOPS, StageRecord
from tasks.services import services

LAST_WORDS_SEC = {"FINISHED": 20.0, "FAILED": 5.0, "KILLED": 2.0}
logger = logging.getLogger("hdm.run")


class Reporter:
    """What is told of a run. This one tells nobody: tracking is switched off."""

    run_id: str | None = None
    """MLflow's, once it has one."""

    def tell(self, event: str, **facts: Any) -> None:
        """Send an event."""

    def end(self, status: str) -> None:
        """The run is over: FINISHED, FAILED or KILLED, as MLflow names it."""

    @contextlib.contextmanager
    def cell(self, name: str, params: dict[str, Any]) -> Iterator[None]:
        """Track all outputs made in the block as one child run with these parameters, unless it is
        there from an earlier run.
        """
        self.tell("cell", name=name, params=params)
        with ending(lambda status: self.tell("cell_end", status=status)):
            yield

    @contextlib.contextmanager
    def stage(self, name: str, folder: Path) -> Iterator[None]:
        """Track one output being made in that folder in the block."""
        self.tell("begin", name=name, folder=str(folder))
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, STOPS) else "FAILED"
            self.tell("failed", name=name, status=status, message=str(error))
            raise

    def made(self, record: StageRecord) -> None:
        """An output is there."""
        self.tell("made", **asdict(record))

    def artifact(self, path: Path) -> None:
        """A file that belongs to the whole run."""
        self.tell("artifact", path=str(path))


class PipedReporter(Reporter):
    """The pipe to one tracking process.

    Args:
        root: the store.
    """

    def __init__(self, root: Path) -> None:
        with (services(root) / "tracking.log").open("wb") as log:
            command = [sys.executable, "-m", "tasks.tracker", str(root)]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=child_environment(),
            )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def tell(self, event: str, **facts: Any) -> None:
        """Send an event. A tracking process that is gone has said so already."""
        line = json.dumps({"event": event, "at": time.time(), **redacted_value(facts)})
        with contextlib.suppress(BrokenPipeError, ValueError):
            assert self.process.stdin
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def end(self, status: str) -> None:
        """Give it a moment to write what it has. If that is too short, it goes on by itself for as
        long as MLflow answers.
        """
        self.tell("end", status=status)
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin
            self.process.stdin.close()
        try:
            self.process.wait(LAST_WORDS_SEC[status])
            self.listener.join(1)
        except subprocess.TimeoutExpired:
            logger.info("MLflow is still being written to, in the background")

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                self.run_id = message.get("run_id", self.run_id)
                if warning := message.get("warning"):
                    logger.warning("%s", warning)


@contextlib.contextmanager
def ending(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell how the block ends, as MLflow names it."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except STOPS:
        status = "KILLED"
        raise
    finally:
        tell(status)
