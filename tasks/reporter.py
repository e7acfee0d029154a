"""Send the events of a run to the tracking process through a pipe, one JSON line for each event.

MLflow itself is in `tasks.tracker`, a process of its own, so that its seconds of import, its log
output and a server that hangs do not slow the stages down. When the pipe closes, that process
finishes and ends, however this process died.
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

# How long a run waits at its end for events that MLflow has not taken yet; less after a stop.
LAST_WORDS_SEC = {"FINISHED": 20.0, "FAILED": 5.0, "KILLED": 2.0}
logger = logging.getLogger("hdm.run")


class Reporter:
    """Receives the events of a run. This class ignores them: tracking is switched off."""

    run_id: str | None = None
    """MLflow's id of the run, once it has one."""

    def send(self, event: str, **facts: Any) -> None:
        """Send an event."""

    def end(self, status: str) -> None:
        """The run has ended as FINISHED, FAILED or KILLED, in MLflow's terms."""

    @contextlib.contextmanager
    def cell(self, name: str, params: dict[str, Any]) -> Iterator[None]:
        """Track all outputs made in the block as one child run with these parameters, unless an
        earlier run has tracked it.
        """
        self.send("cell", name=name, params=params)
        with ending(lambda status: self.send("cell_end", status=status)):
            yield

    @contextlib.contextmanager
    def stage(self, name: str, folder: Path) -> Iterator[None]:
        """Track the output that is made in the block, in that folder."""
        self.send("begin", name=name, folder=str(folder))
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, STOPS) else "FAILED"
            self.send("failed", name=name, status=status, message=str(error))
            raise

    def made(self, record: StageRecord) -> None:
        """Report an output that was made or found."""
        self.send("made", **asdict(record))

    def artifact(self, path: Path) -> None:
        """Report a file that belongs to the whole run."""
        self.send("artifact", path=str(path))


class PipedReporter(Reporter):
    """The pipe to one tracking process.

    Args:
        root: the store.
    """

    def __init__(self, root: Path) -> None:
        # MLflow's own messages go to this log, not to the terminal.
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

    def send(self, event: str, **facts: Any) -> None:
        """Send an event. A tracking process that has ended has reported why already."""
        line = json.dumps({"event": event, "at": time.time(), **redacted_value(facts)})
        with contextlib.suppress(BrokenPipeError, ValueError):
            assert self.process.stdin
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def end(self, status: str) -> None:
        """Wait briefly until the tracking process has written everything. If it needs longer, it
        continues by itself as long as MLflow answers.
        """
        self.send("end", status=status)
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
def ending(report: Callable[[str], None]) -> Iterator[None]:
    """Report how the block ends, in MLflow's terms."""
    # The value after any other exception.
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except STOPS:
        status = "KILLED"
        raise
    finally:
        report(status)
