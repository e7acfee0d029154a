"""Records that flows and tasks return, and how their end is reported to Prefect."""

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
"""A stop shows as one of these: the trainer saved, a signal at any other time, a stop in a subflow.
"""


@dataclass(frozen=True)
class StageRecord:
    """One output of a pipeline that was made or found.

    Args:
        name: output name, such as `filter` or `encode.64px`.
        digest: its name in the store; `path` is its folder.
        counts: rows, kept, rejected_…, summed over its files.
        seconds: time that it took in this run; nearly nothing if `cached`.
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
    """Name of a stage's flow run: its output if it has only one (`train.64px demo`), or else the
    flow.
    """
    outputs = flow_run.parameters.get("outputs") or []
    what = outputs[0] if len(outputs) == 1 else flow_run.flow_name
    return f"{what} {flow_run.parameters['pipeline']}"


def settled(body: Callable[P, R]) -> Callable[P, R]:
    """End a flow or a task in a meaningful state: up to date, cancelled by a signal, or failed with
    advice.

    Use it below `@flow` or `@task`. An `HdmError` is reported by its message, without a traceback;
    anything else stays an exception.
    """

    @functools.wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        guard_output()
        try:
            result: Any = body(*args, **kwargs)
        except STOPS as stop:
            hurry()
            message = "stopped by a signal; run the same again to go on"
            if isinstance(stop, SavedOnSignal | CancelledRun):
                message = str(stop)
            return Cancelled(message=message)
        except HdmError as error:
            # The error itself as data: `hdm run` reports it with its advice and exit code.
            return Failed(message=str(error), data=error)
        except Exception as error:
            error.args = redacted_value(error.args)  # Prefect stores and logs it
            raise
        records = result if isinstance(result, list) else [result]
        if records and all(record.cached for record in records):
            return Completed(
                name="UpToDate",
                message=f"in the store: {', '.join(record.name for record in records)}",
                data=result,
            )
        return result

    return run
