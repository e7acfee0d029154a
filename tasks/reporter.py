"""Tell the tracking process what happens in a run: one JSON line an event, down a pipe.

MLflow itself is in `tasks.tracker`, a process of its own: its seconds of import, its log noise and
a server that hangs cost the stages nothing, and when the pipe closes it finishes and ends, however
this process died.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from hdm.child import child_environment
from hdm.config import Pipeline
from hdm.provenance import provenance
from hdm.redaction import redacted_value
from hdm.store import store_root
from tasks.configuration import configured, read_anew, recipe
from tasks.figures import flattened
from tasks.records import STOPS, StageRecord
from tasks.services import services, under_way
from tasks.stopping import stoppable

SWITCH = "HDM_TRACKING"  # "off": no MLflow at all
LAST_WORDS_SEC = {"FINISHED": 20.0, "FAILED": 5.0, "KILLED": 2.0}
logger = logging.getLogger("hdm.run")


class Reporter:
    """The pipe to one tracking process."""

    def __init__(self, root: Path) -> None:
        self.run_id: str | None = None
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
        with contextlib.suppress(BrokenPipeError, ValueError):
            assert self.process.stdin
            self.process.stdin.write(
                json.dumps({"event": event, "at": time.time(), **redacted_value(facts)}) + "\n"
            )
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
                told = json.loads(line)
                self.run_id = told.get("run_id", self.run_id)
                if warning := told.get("warning"):
                    logger.warning("%s", warning)


_under_way = False
_current: Reporter | None = None  # None under way: tracking is switched off
last_run_id: str | None = None
"""MLflow's id of the last run of this process."""


@contextlib.contextmanager
def run(pipeline: str, overrides: list[str], lab: str | None = None) -> Iterator[None]:
    """Track what happens in the block as one run; inside another such block, as a part of that one.

    Args:
        pipeline, overrides: what is run.
        lab: the name under which the cells of a lab are kept together: its run goes on where the
            same lab is run again.
    """
    global _under_way, _current, last_run_id
    if _under_way:
        yield
        return
    read_anew()
    settings, root = configured(pipeline, overrides), store_root()
    with under_way(root, settings.name, flow_run.root_flow_run_id):
        _under_way, _current = True, None if os.environ.get(SWITCH) == "off" else Reporter(root)
        facts = _facts(settings, overrides)
        if lab is not None:
            facts |= {"pipeline": lab, "flow_run": f"{lab} {facts['recipe']}"}
        _tell("run", **facts)
        try:
            # Before the first stage, too, where an exception in an import may be swallowed.
            with (
                _ending(lambda status: _current.end(status) if _current is not None else None),
                stoppable(),
            ):
                yield
        finally:
            if _current is not None:
                last_run_id = _current.run_id
            _under_way, _current = False, None


@contextlib.contextmanager
def _ending(tell: Callable[[str], None]) -> Iterator[None]:
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


@contextlib.contextmanager
def cell(name: str, params: dict[str, Any]) -> Iterator[None]:
    """Track all outputs made in the block as one child run with these parameters, unless it is
    there from an earlier run.
    """
    _tell("cell", name=name, params=params)
    with _ending(lambda status: _tell("cell_end", status=status)):
        yield


@contextlib.contextmanager
def stage(name: str, folder: Path) -> Iterator[None]:
    """Track one output being made in that folder in the block."""
    _tell("begin", name=name, folder=str(folder))
    try:
        yield
    except BaseException as error:
        _tell(
            "failed",
            name=name,
            status="KILLED" if isinstance(error, STOPS) else "FAILED",
            message=str(error),
        )
        raise


def made(record: StageRecord) -> None:
    """An output is there."""
    _tell("made", **asdict(record))


def artifact(path: Path) -> None:
    """A file that belongs to the whole run."""
    _tell("artifact", path=str(path))


def _tell(event: str, **facts: Any) -> None:
    if _current is not None:
        _current.tell(event, **facts)


def _facts(settings: Pipeline, overrides: list[str]) -> dict[str, Any]:
    return {
        "pipeline": settings.name,
        "description": settings.description,
        "recipe": recipe(settings),
        "params": dict(
            flattened(settings.model_dump(mode="json", exclude={"name", "description", "mixed"}))
        ),
        "overrides": overrides,
        "pid": os.getpid(),
        "flow_run": flow_run.root_flow_run_id,
        "provenance": provenance(),
    }
