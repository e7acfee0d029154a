"""`hdm run`: the flow full-pipeline in this process, and what it says on a terminal."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shlex
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from flows.processes import (
    POLL_SEC,
    Service,
    bypass_proxy,
    nearest_listener,
    pages_at,
    prefect_server_command,
    start_lock,
    wait_for,
)
from hdm.child import child_environment
from hdm.databases import check_databases, databases
from hdm.errors import HdmError, InputError, SavedOnSignal
from hdm.files import check_temporary
from hdm.messages import Terminal, say_json
from hdm.progress import show_log
from hdm.store import read_output
from tasks.configuration import STORE_VARIABLE, Project
from tasks.outcome import Outcome
from tasks.services import (
    PREFECT_DATABASE,
    alone_at,
    password,
    prefect_access,
    prefect_environment,
    services,
    serving,
    under_way,
)

HEALTH_SEC = 5.0
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_CLIENT_MAX_RETRIES": "0",  # tasks/patience.py repeats
}
OWN_SERVER = {
    # Other writers to SQLite make the run's requests fail with 503 and wait 2 s each, and nobody
    # reads events here.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    # Whole seconds: the recorder truncates this to an integer, and would spin at 0.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
}
logger = logging.getLogger("hdm.run")
console = Terminal(stderr=True, highlight=False, soft_wrap=True)


def run_pipeline(
    project: Project,
    name: str,
    start_from: str | None,
    stop_after: str | None,
    settings: list[str],
    verbose: bool,
) -> dict[str, Any]:
    """Run a pipeline on the configured Prefect server, or on one started for the run.

    Returns:
        The summary that `--json` prints.

    Raises:
        HdmError: the run failed; SavedOnSignal if a signal stopped it.
    """
    pipeline = project.pipeline(name, settings)
    root = project.root

    def check() -> None:
        from hdm.stages import preflight  # torch: seconds

        preflight(pipeline, project.store, start_from, stop_after)

    if any(path.name == PREFECT_DATABASE for path in databases(root)):
        prepare(root, verbose)
        begun = begin_server(root)
        check()  # while the server starts
    else:
        # The first server makes its database's tables, which a mistake in the settings would cut
        # short.
        check()
        prepare(root, verbose)
        begun = begin_server(root)
    outcome = Outcome()
    with server(root, begun), traceback_once(verbose):
        from flows.full_pipeline import pipeline_flow

        full_pipeline = pipeline_flow(project, outcome)
        state: Any = full_pipeline(name, start_from, stop_after, settings, return_state=True)
        records = state.result(raise_on_failure=False)
    # A signal ends the flow as Cancelled; the exit code for it is that of a saved run (75).
    if state.is_cancelled():
        raise SavedOnSignal(state.message or "stopped")
    if isinstance(records, Exception):
        raise records
    return _summary(root, name, records, outcome)


def prepare(root: Path, verbose: bool) -> None:
    """Environment, databases and logs, before Prefect is imported.

    Raises:
        DoesNotFitError: there is no room for temporary files.
        DamagedError: a database of the store's services cannot be read.
        HdmError: the folder for logs, reports and databases cannot be written.
    """
    bypass_proxy()
    check_temporary()
    if found := databases(root):
        services(root)  # first: a database in a folder without write permission cannot be checked
        check_databases(found)
    # Prefect itself calls the hook in flows/deployment_names.py, and cannot pass it an argument.
    os.environ[STORE_VARIABLE] = str(root)
    ours = {
        **QUIET,
        **prefect_environment(root),
        "PREFECT_LOGGING_LEVEL": "INFO" if verbose else "WARNING",
    }
    # What the user has set wins, except the address and password of this store's own server.
    os.environ.update({key: os.environ.get(key, value) for key, value in ours.items()})
    os.environ.update(prefect_access(root, os.environ.get("PREFECT_API_URL")))
    show_log()


@dataclass(frozen=True)
class OwnServer:
    """A run's own server, which may still be starting.

    Args:
        service: its process.
        address: where it will answer.
        secret: its password.
        starting: close it once the server answers.
    """

    service: Service
    address: str
    secret: str
    starting: contextlib.ExitStack


def begin_server(root: Path) -> OwnServer | None:
    """Begin to start a server that lives as long as this process; None if another one's address is
    set.

    Prefect would start one itself, but in the terminal's process group. There Ctrl-C ends the
    server before the run has reported its state, and the server outlives a run that is killed.
    """
    from prefect.settings import get_current_settings  # Prefect: a second

    # From the environment, Prefect's profile, or the `hdm serve` of this store (`prepare`).
    if get_current_settings().api.url is not None:
        return None
    stack = contextlib.ExitStack()
    atexit.register(stack.close)  # Prefect sends its last logs and events while Python ends
    secret = password(root)
    # A server as closed as that of `hdm serve`: it uses the same database, and pages in the user's
    # browser could reach it.
    listener = stack.enter_context(nearest_listener(0))
    address, *others = pages_at(listener.getsockname()[1])
    service = Service(
        "prefect",
        prefect_server_command([listener], [address, *others]),
        {**child_environment(), **OWN_SERVER, "PREFECT_SERVER_API_AUTH_STRING": secret},
        root,
        root,
        [listener],
    )
    # Until it answers: by then it has made its tables.
    starting = stack.enter_context(contextlib.ExitStack())
    starting.enter_context(alone_at(start_lock(root)))
    stack.enter_context(service)
    return OwnServer(service, address, secret, starting)


@contextlib.contextmanager
def server(root: Path, own: OwnServer | None) -> Iterator[None]:
    """Use the server that `begin_server` started, once it answers, or else the one whose address is
    set.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        get_current_settings,
        temporary_settings,
    )

    from tasks.patience import hurried_at_last, install  # Prefect: seconds

    install()
    if own is None:
        _check(str(get_current_settings().api.url))
        with under_way(root, "a run"), hurried_at_last():
            yield
        return
    wait_for(f"{own.address}/api/health", own.service.process, root)
    own.starting.close()
    # Each flow's heartbeat thread takes up to a second to end, and nothing reads heartbeats here.
    with (
        under_way(root, "a run"),
        temporary_settings(
            {
                PREFECT_API_URL: f"{own.address}/api",
                PREFECT_API_AUTH_STRING: own.secret,
                PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            }
        ),
        _kept_alive(own.service),
        hurried_at_last(),
    ):
        yield


@contextlib.contextmanager
def _kept_alive(service: Service) -> Iterator[None]:
    """Restart the run's own server if it ends before the run does."""
    over = threading.Event()

    def watch() -> None:
        try:
            while not over.wait(POLL_SEC):
                code = service.revived()
                if code is not None:
                    logger.warning("Prefect's server ended with exit code %s; started again", code)
        except HdmError as error:
            logger.error("%s", error)
        # PR_SET_PDEATHSIG counts the thread as the parent: if it ended, so would the server.
        threading.Event().wait()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _check(url: str) -> None:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=HEALTH_SEC):
            return
    except (OSError, urllib.error.URLError) as error:
        raise InputError(
            f"no Prefect server answers: {error}",
            where=url,
            do="start it (hdm serve), or unset PREFECT_API_URL to run without one",
        ) from error


@contextlib.contextmanager
def traceback_once(verbose: bool) -> Iterator[None]:
    """Prefect logs an error for every flow and task that it passes through; show it once."""
    from prefect.logging.configuration import setup_logging

    def once(record: logging.LogRecord) -> bool:
        return verbose or (record.exc_info is None and "Finished in state" not in str(record.msg))

    # Prefect attaches its handlers here; the filter has to go onto all of them.
    setup_logging()
    handlers = logging.getLogger().handlers + logging.getLogger("prefect").handlers
    for handler in handlers:
        handler.addFilter(once)
    yield
    for handler in handlers:
        handler.removeFilter(once)


def _summary(root: Path, name: str, records: list[Any], outcome: Outcome) -> dict[str, Any]:
    from hdm.evaluation.report_index import INDEX, reports
    from hdm.scoring.metrics import headlines, scores_of

    stages = [
        {
            "name": one.name,
            "digest": one.digest,
            "seconds": one.seconds,
            "cached": one.cached,
            "counts": one.counts,
        }
        for one in records
    ]
    evaluated = [one for one in records if one.stage == "evaluate"]
    # Scores come from the manifests, so an evaluation that was found in the store shows them too.
    summaries = {one.name: read_output(Path(one.path)).summary for one in evaluated}
    measured = scores_of(summaries)
    return {
        "pipeline": name,
        "stages": stages,
        "scores": {name: score["value"] for name, score in headlines(measured).items()},
        "measured": measured,
        "report": str(outcome.report) if outcome.report else None,
        "reports": str(reports(root) / INDEX),
        "pictures": {one.name: one.path for one in records if one.stage in ("train", "evaluate")},
        "store": str(root),
        "mlflow_run_id": outcome.mlflow_run,
    }


def tell(summary: dict[str, Any], name_store: bool = False) -> None:
    """Print the scores, and where the results are.

    Args:
        name_store: add the store's folder to the commands shown.
    """
    from hdm.scoring.metrics import headlines  # which the run has imported

    where = f" --store {shlex.quote(summary['store'])}" if name_store else ""
    console.print()
    for what, score in headlines(summary["measured"]).items():
        value = f"{score['value']:.1%}" if score["is_share"] else f"{score['value']:.4g}"
        note = f", {score['note']}" if score["note"] else ""
        console.print(escape(f"{what.replace('_', ' '):<18} {value}{note}"))
    if summary["report"]:
        console.print(f"report        {escape(summary['report'])}")
        console.print(f"all reports   {escape(summary['reports'])}")
    for output, folder in summary["pictures"].items():
        for picture in sorted(Path(folder).glob("*.png")):
            console.print(f"pictures      {escape(str(picture))}  ({output})")
    if any(output.startswith("train.") for output in summary["pictures"]):
        console.print(
            f"more          hdm sample --pipeline {escape(summary['pipeline'])}{escape(where)}"
            ' --prompt "…"'
        )
    if summary["mlflow_run_id"]:
        alive = serving(Path(summary["store"]))
        where_to_compare = (
            f"{alive.mlflow} compares this run with others"
            if alive
            else f"hdm serve{where}, then its pages compare this run with others"
        )
        console.print(f"MLflow        {escape(where_to_compare)}", soft_wrap=True)


def print_json(summary: dict[str, Any]) -> None:
    """The last line of standard output."""
    say_json(summary)
