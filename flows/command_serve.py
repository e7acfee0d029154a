"""`hdm serve`: Prefect's server, MLflow's server and a worker on loopback, started and stopped together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from rich.console import Console

from hdm.errors import HdmError
from hdm.pipelines import pipelines_file
from tasks.configuration import FILE_VARIABLE
from tasks.services import Serving, alone, announce, prefect_environment, services
from tasks.tracking import server_command, server_environment

POOL = "hdm"
START_SEC, STOP_SEC, POLL_SEC = 120.0, 35.0, 0.3
console = Console(stderr=True, highlight=False, soft_wrap=True)


def serve_pages(root: Path, file: Path | None, prefect_port: int, mlflow_port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, or until one of the processes ends.

    Raises:
        LockedError: this store is served already.
        HdmError: a process did not start, or ended.
    """
    definitions = pipelines_file(file).resolve()
    with alone(root), _until_signal(), contextlib.ExitStack() as stack:
        prefect, mlflow = f"http://127.0.0.1:{_free(prefect_port)}", f"http://127.0.0.1:{_free(mlflow_port)}"
        environment = _environment(root, definitions, f"{prefect}/api")
        started: dict[str, subprocess.Popen[bytes]] = {}

        def begin(name: str, command: list[str], extra: Mapping[str, str] | None = None) -> None:
            started[name] = stack.enter_context(_running(name, command, {**environment, **(extra or {})}, root, definitions.parent))

        begin("prefect", _prefect("server", "start", "--host", "127.0.0.1", "--port", prefect.rpartition(":")[2]))
        begin("mlflow", server_command(root, int(mlflow.rpartition(":")[2])), server_environment())
        console.print("starting; the first time takes a while: both make their databases")
        _wait(f"{prefect}/api/health", started["prefect"], root)
        _deploy(definitions, environment)
        begin("worker", _prefect("worker", "start", "--pool", POOL, "--type", "process", "--name", POOL))
        _wait(f"{mlflow}/health", started["mlflow"], root)
        announce(root, Serving(os.getpid(), prefect, mlflow, {name: process.pid for name, process in started.items()}))
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


def _prefect(*words: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *words]


def _deploy(definitions: Path, environment: Mapping[str, str]) -> None:
    """The work pool, every deployment of pipelines.yaml, and the automation that sees dead runs."""
    for command in (
        _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite"),
        _prefect("--no-prompt", "deploy", "--prefect-file", str(definitions), "--all"),
        [sys.executable, "-m", "flows.dead_runs"],
    ):
        done = subprocess.run(command, env=dict(environment), cwd=definitions.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HdmError(f"{' '.join(command[1:])} failed:\n{(done.stdout + done.stderr)[-2000:]}", where=definitions)


@contextlib.contextmanager
def _running(name: str, command: list[str], environment: Mapping[str, str], root: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, its output in a log; gone, with all that it started, at the end of the block."""
    with (services(root) / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdout=log, stderr=log, start_new_session=True, preexec_fn=_die_with_parent
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SEC)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> None:
    """Linux: SIGTERM when the process that started this one dies, be it by SIGKILL."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


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


def _free(port: int) -> int:
    """That port of loopback, or any other if it is in use."""
    for wanted in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", wanted))
                return probe.getsockname()[1]
    raise HdmError("no port of 127.0.0.1 is free")


def _wait(address: str, process: subprocess.Popen[bytes], root: Path) -> None:
    deadline = time.monotonic() + START_SEC
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(address, timeout=2):
            return
        time.sleep(POLL_SEC)
    raise HdmError(f"{address} does not answer", where=services(root), do="look at the logs there")


def _watch(started: Mapping[str, subprocess.Popen[bytes]], root: Path) -> None:
    while True:
        for name, process in started.items():
            if process.poll() is not None:
                raise HdmError(f"{name} ended with exit code {process.returncode}", where=services(root) / f"{name}.log", do="hdm serve")
        time.sleep(POLL_SEC)
