"""What flows and tasks hand on, and how an end is reported to Prefect."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from hdm.errors import HdmError, SavedOnSignal
from hdm.messages import guard_output
from hdm.redaction import redacted_value
from tasks.patience import hurry

P = ParamSpec("P")
R = TypeVar("R")
STOPS = (SavedOnSignal, TerminationSignal, KeyboardInterrupt, CancelledRun)
"""What a stop looks like: the trainer saved, a signal during anything else, a stop further down."""


@dataclass(frozen=True)
class StageRecord:
    """One output of a pipeline, as made or found.

    Args:
        name: output name, as `filter` or `encode.64px`.
        digest: what names it in the store; `path` is its folder.
        counts: rows, kept, rejected_…, summed over its files.
        seconds: what it took this time; next to nothing where `cached`.
        cached: it was in the store already.
    """

    name: str
    digest: str
    path: str
    counts: dict[str, int]
    seconds: float
    cached: bool

    @property
    def stage(self) -> str:
        return self.name.split(".")[0]


def run_name() -> str:
    """What a stage's flow run is called: its output if there is one alone, as `train.64px demo`,
    else the flow.
    """
    outputs = flow_run.parameters.get("outputs") or []
    return (
        f"{outputs[0] if len(outputs) == 1 else flow_run.flow_name}"
        f" {flow_run.parameters['pipeline']}"
    )


def settled(body: Callable[P, R]) -> Callable[P, R]:
    """End a flow or a task in a state that says it: up to date, cancelled by a signal, or failed
    with what to do about it.

    Put under `@flow` or `@task`. An `HdmError` is reported in its own words, with no traceback;
    anything else stays an exception.
    """

    @functools.wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        guard_output()
        try:
            found: Any = body(*args, **kwargs)
        except STOPS as stop:
            hurry()
            message = (
                str(stop)
                if isinstance(stop, SavedOnSignal | CancelledRun)
                else "stopped by a signal; run the same again to go on"
            )
            return Cancelled(message=message)
        except HdmError as error:
            return Failed(message=str(error), data=error)
        except Exception as error:
            error.args = redacted_value(error.args)  # Prefect stores and logs it
            raise
        records = found if isinstance(found, list) else [found]
        if records and all(record.cached for record in records):
            return Completed(
                name="UpToDate",
                message=f"in the store: {', '.join(record.name for record in records)}",
                data=found,
            )
        return found

    return run
