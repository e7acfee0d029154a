"""Report runs whose process is gone to Prefect, which would otherwise show them as Running for
ever.

Every run of the store has a record and a lock that dies with its process (tasks/services.py). A run
is dead exactly when its lock is free, so a server that was silent for long does not make a living
run look dead.
"""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.prefect_api import delete, post
from tasks.services import Serving, dead_runs, forget, password, runs

POOL = "hdm"
UNFINISHED = {
    "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED"]}}
}
AUTOMATION = "runs whose process died"
CRASHED = {
    "type": "CRASHED",
    "name": "Crashed",
    "message": "its process is gone; retry it, or run the same again",
}
STARTING = timedelta(seconds=30)
"""A run's process may take this long from its worker's claim to its record among `runs`."""
AGAIN = {
    "type": "SCHEDULED",
    "name": "Scheduled",
    "message": "the worker that took it died before it started",
}


def settle(root: Path, served: Serving) -> None:
    """Mark the store's dead runs, and the flow runs nested in them, as Crashed.

    Raises:
        OSError: the server does not answer. The next call settles the runs that are left.
    """
    for path, record in dead_runs(root).items():
        if record.get("flow_run") is not None:
            for found in _unfinished(root, served, record["flow_run"]):
                _ask(
                    root, served, f"flow_runs/{found}/set_state", {"state": CRASHED, "force": True}
                )
        # Only after Prefect has accepted it: a record that is left is settled by the next call.
        forget(path)


def release_claims(root: Path, served: Serving, worker_since: datetime) -> None:
    """Reschedule the runs that a dead worker had claimed but not started, so that the current
    worker takes them.

    Args:
        worker_since: when the current worker was started. A run claimed earlier has a process only
            if `runs` lists it.

    Raises:
        OSError: the server does not answer.
    """
    asked = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {"state": {"type": {"any_": ["PENDING"]}}},
    }
    # Prefect shows a run as Pending until it starts; only its record says whether it has a process.
    living = {record["flow_run"] for record in runs(root)}
    before = min(worker_since, datetime.now(UTC) - STARTING)
    for found in _ask(root, served, "flow_runs/filter", asked):
        since = datetime.fromisoformat(found["state"]["timestamp"])
        if found["id"] not in living and since < before:
            again = {"state": AGAIN, "force": True}
            _ask(root, served, f"flow_runs/{found['id']}/set_state", again)


def cancel_orphans(root: Path, served: Serving) -> None:
    """Stop the runs that Prefect is cancelling and whose worker is gone: no other worker knows
    their process.

    Raises:
        OSError: the server does not answer.
    """
    orphans = {
        record["flow_run"]: record["pid"]
        for record in runs(root)
        if record.get("worker") and not _lives(record["worker"])
    }
    if not orphans:
        return
    asked = {
        "flow_runs": {"id": {"any_": list(orphans)}, "state": {"type": {"any_": ["CANCELLING"]}}}
    }
    for found in _ask(root, served, "flow_runs/filter", asked):
        os.kill(orphans[found["id"]], signal.SIGTERM)


def remove_automation(root: Path, served: Serving) -> None:
    """Remove the automation of earlier versions, which declared a run dead when its heartbeats
    stopped.

    Raises:
        OSError: the server does not answer.
    """
    asked = {"automations": {"name": {"any_": [AUTOMATION]}}}
    for found in _ask(root, served, "automations/filter", asked):
        delete(f"{served.prefect}/api/automations/{found['id']}", password(root))


def _unfinished(root: Path, served: Serving, flow_run: str) -> list[str]:
    """Ids of that flow run and the flow runs nested in it that have not ended."""
    found = []
    for which in ({"id": {"any_": [flow_run]}}, {"parent_flow_run_id": {"any_": [flow_run]}}):
        asked = {"flow_runs": {**which, **UNFINISHED}}
        found += [one["id"] for one in _ask(root, served, "flow_runs/filter", asked)]
    return found


def _ask(root: Path, served: Serving, path: str, body: Any) -> Any:
    return post(f"{served.prefect}/api/{path}", body, password(root))


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
