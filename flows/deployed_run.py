"""The process of a run that was started from a deployment: `python -m flows.deployed_run`, as the
worker of `hdm serve` starts it.

It runs Prefect's own `python -m prefect.engine` with its own session and log, and with requests
that wait for the server. It survives the death of the worker and of the server.
"""

from __future__ import annotations

import logging
import os
import runpy
import sys

from hdm.errors import HdmError
from hdm.store import store_root
from tasks.services import services, under_way

LOG = "runs.log"


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names."""
    root = store_root()
    # A session of its own: signals to the worker's process group do not reach this run.
    os.setsid()
    with (services(root) / LOG).open("ab") as log:
        for stream in (sys.stdout, sys.stderr):  # else pipes to the worker, which may die
            os.dup2(log.fileno(), stream.fileno())
    # The record before the slow imports: until it exists, flows/dead_runs.py takes this run for one
    # that was claimed and never started.
    flow_run = os.environ["PREFECT__FLOW_RUN_ID"]
    with under_way(root, "a deployment", flow_run, worker=os.getppid()):
        # tasks/patience.py retries instead. Prefect would otherwise retry within each of its
        # attempts.
        os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "0"  # before Prefect is imported
        from tasks.patience import hurried_at_last, install

        install()
        logging.getLogger("prefect.flow_runs").addFilter(_told_by_state)
        # prefect.engine takes its first argument for the flow run's id; without one it reads the
        # variable.
        del sys.argv[1:]
        with hurried_at_last():
            runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _told_by_state(record: logging.LogRecord) -> bool:
    """Leave out the traceback where the run's state already gives the reason in one line: a stop,
    or an error with its advice.
    """
    from prefect.exceptions import CancelledRun

    return not (record.exc_info and isinstance(record.exc_info[1], CancelledRun | HdmError))


if __name__ == "__main__":
    main()
