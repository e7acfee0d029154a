"""`hdm serve`: Prefect's server, MLflow's server and a worker on loopback, started and stopped together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from flows.processes import POLL_SEC, bypass_proxy, free_port, prefect_command, running, wait_for
from hdm.databases import check_databases, databases
from hdm.errors import HdmError
from hdm.messages import Terminal
from hdm.pipelines import pipelines_file
from tasks.configuration import FILE_VARIABLE
from tasks.services import Serving, alone, announce, prefect_environment, services
from tasks.tracking import server_command, server_environment

POOL = "hdm"
console = Terminal(stderr=True, highlight=False, soft_wrap=True)


def serve_pages(root: Path, file: Path | None, prefect_port: int, mlflow_port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, or until one of the processes ends.

    Raises:
        LockedError: this store is served already.
        DamagedError: a database cannot be read.
        HdmError: a process did not start, or ended.
    """
    definitions = pipelines_file(file).resolve()
    bypass_proxy()
    check_databases(databases(root))
    with alone(root), _until_signal(), contextlib.ExitStack() as stack:
        prefect, mlflow = (
            f"http://127.0.0.1:{free_port(prefect_port)}",
            f"http://127.0.0.1:{free_port(mlflow_port)}",
        )
        environment = _environment(root, definitions, f"{prefect}/api")
        started: dict[str, subprocess.Popen[bytes]] = {}

        def begin(name: str, command: list[str], extra: Mapping[str, str] | None = None) -> None:
            started[name] = stack.enter_context(
                running(name, command, {**environment, **(extra or {})}, root, definitions.parent)
            )

        begin(
            "prefect",
            prefect_command(
                "server", "start", "--host", "127.0.0.1", "--port", prefect.rpartition(":")[2]
            ),
        )
        begin("mlflow", server_command(root, int(mlflow.rpartition(":")[2])), server_environment())
        console.print("starting; the first time takes a while: both make their databases")
        wait_for(f"{prefect}/api/health", started["prefect"], root)
        _deploy(definitions, environment)
        begin(
            "worker",
            prefect_command("worker", "start", "--pool", POOL, "--type", "process", "--name", POOL),
        )
        wait_for(f"{mlflow}/health", started["mlflow"], root)
        announce(
            root,
            Serving(
                os.getpid(),
                prefect,
                mlflow,
                {name: process.pid for name, process in started.items()},
            ),
        )
        console.print(
            f"Prefect   {prefect}\nMLflow    {mlflow}\nstore     {root}\nrun       prefect deployment run full-pipeline\nstop      Ctrl-C"
        )
        _watch(started, root)


def _environment(root: Path, definitions: Path, api: str) -> dict[str, str]:
    return {
        **os.environ,
        **prefect_environment(root),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_UI_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HDM_STORE": str(root),
        FILE_VARIABLE: str(definitions),
    }


def _deploy(definitions: Path, environment: Mapping[str, str]) -> None:
    """The work pool, every deployment of pipelines.yaml, and the automation that sees dead runs."""
    for command in (
        prefect_command("work-pool", "create", POOL, "--type", "process", "--overwrite"),
        prefect_command("--no-prompt", "deploy", "--prefect-file", str(definitions), "--all"),
        [sys.executable, "-m", "flows.dead_runs"],
    ):
        done = subprocess.run(
            command,
            env=dict(environment),
            cwd=definitions.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HdmError(
                f"{' '.join(command[1:])} failed:\n{(done.stdout + done.stderr)[-2000:]}",
                where=definitions,
            )


@contextlib.contextmanager
def _until_signal() -> Iterator[None]:
    """The first SIGTERM or Ctrl-C ends the block; those that follow are waited out."""

    def stop(number: int, frame: FrameType | None) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)
        console.print("stopping Prefect, MLflow and the worker")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(started: Mapping[str, subprocess.Popen[bytes]], root: Path) -> None:
    while True:
        for name, process in started.items():
            if process.poll() is not None:
                raise HdmError(
                    f"{name} ended with exit code {process.returncode}",
                    where=services(root) / f"{name}.log",
                    do="hdm serve",
                )
        time.sleep(POLL_SEC)
