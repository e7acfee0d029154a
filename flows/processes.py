"""Servers on loopback as child processes: in a session of their own, with a log, and gone when this process is."""

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

from hdm.errors import HdmError
from tasks.services import services

START_SEC, STOP_SEC, POLL_SEC = 120.0, 35.0, 0.2
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def bypass_proxy() -> None:
    """Let this process and its children reach this machine's own servers without the user's proxy.

    urllib, httpx (Prefect) and requests (MLflow) all obey `no_proxy`; what the user put there stays.
    """
    proxies = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    named = [host.strip() for host in proxies.split(",") if host.strip()]
    if "*" in named:
        return
    direct = ",".join([*named, *(host for host in LOOPBACK if host not in named)])
    os.environ |= {"no_proxy": direct, "NO_PROXY": direct}


def prefect_command(*words: str) -> list[str]:
    """The `prefect` of this Python."""
    return [sys.executable, "-m", "prefect", *words]


@contextlib.contextmanager
def running(
    name: str, command: list[str], environment: Mapping[str, str], root: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, its output in a log; gone, with all that it started, at the end of the block."""
    with (services(root) / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,
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


def free_port(port: int) -> int:
    """That port of loopback, or any other if it is in use."""
    for wanted in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", wanted))
                return probe.getsockname()[1]
    raise HdmError("no port of 127.0.0.1 is free")


def wait_for(address: str, process: subprocess.Popen[bytes], root: Path) -> None:
    """Until the address answers.

    Raises:
        HdmError: it does not, or its process ended.
    """
    deadline = time.monotonic() + START_SEC
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(address, timeout=2),
        ):
            return
        time.sleep(POLL_SEC)
    raise HdmError(f"{address} does not answer", where=services(root), do="look at the logs there")
