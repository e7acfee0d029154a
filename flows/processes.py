"""Servers on loopback as child processes. Each has its own session and log, and ends with this
process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hdm.errors import HdmError
from tasks.services import services

# A server takes minutes to start on a busy machine. One that ends is noticed at once.
START_SEC = 300.0
# From SIGTERM to SIGKILL.
STOP_SEC = 35.0
POLL_SEC = 0.2
ERROR_LINE = re.compile(r"^[\w.]*(?:Error|Exception): .+$", re.MULTILINE)
ERROR_CHARS = 300
LOOPBACK = "127.0.0.1"
DIRECT = (LOOPBACK, "localhost", "::1")
RESTARTS = 10
RESTARTS_SEC = 600.0
NEIGHBOURS = 20  # ports that are tried above one in use


def bypass_proxy() -> None:
    """Let this process and its children reach this machine's own servers without the user's proxy.

    urllib, httpx (Prefect) and requests (MLflow) all obey `no_proxy`. The user's own entries are
    kept.
    """
    proxies = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    named = [host.strip() for host in proxies.split(",") if host.strip()]
    if "*" in named:
        return
    direct = ",".join([*named, *(host for host in DIRECT if host not in named)])
    os.environ |= {"no_proxy": direct, "NO_PROXY": direct}


def prefect_command(*words: str) -> list[str]:
    """A `prefect` command of this Python installation."""
    return [sys.executable, "-m", "prefect", *words]


@dataclass(frozen=True)
class Encrypted:
    """A listening socket for TLS, with the files of its certificate and key."""

    listener: socket.socket
    certificate: Path
    key: Path


def prefect_server_command(
    listeners: Sequence[socket.socket], pages: Sequence[str], encrypted: Encrypted | None = None
) -> list[str]:
    """The command that serves Prefect on sockets which this process has opened, only to these
    pages.
    """
    sockets = [word for one in listeners for word in ("--socket", str(one.fileno()))]
    origins = [word for page in pages for word in ("--page", page)]
    tls: list[str] = []
    if encrypted is not None:
        files = ("--certificate", str(encrypted.certificate), "--key", str(encrypted.key))
        tls = ["--tls-socket", str(encrypted.listener.fileno()), *files]
    return [sys.executable, "-m", "flows.prefect_server", *sockets, *origins, *tls]


def start_lock(root: Path) -> Path:
    """The lock held while Prefect's server starts: if two create the database's tables at once, one
    of them ends.
    """
    return services(root) / "prefect.lock"


def pages_at(port: int) -> list[str]:
    """The origins of pages that are served at that port of loopback."""
    return [f"http://{LOOPBACK}:{port}", f"http://localhost:{port}"]


class Service:
    """A child process in its own session, with its output in a log. It can be restarted when it
    ends.

    At the end of the `with` block it is stopped, with all processes that it started.

    Args:
        name: its log is `<root>/.services/<name>.log`.
        command, environment, folder: what is run, and where.
        root: the store.
        listeners: sockets that it inherits under the same numbers.

    `since` is the start time of the current process.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        root: Path,
        folder: Path,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        self.name = name
        self.command = list(command)
        self.environment = dict(environment)
        self.root = root
        self.folder = folder
        self.listeners = listeners
        self.log = services(root) / f"{name}.log"
        self.restarts: list[float] = []

    def __enter__(self) -> Service:
        self.log.unlink(missing_ok=True)
        self.process = self._start()
        return self

    def __exit__(self, *error: object) -> None:
        _end(self.process)

    def _start(self) -> subprocess.Popen[bytes]:
        self.since = datetime.now(UTC)
        with self.log.open("ab") as log:
            # The sockets are opened here and inherited: across restarts a server keeps its port,
            # which no other program can take meanwhile. In its own session Ctrl-C does not reach it
            # before the runs are saved.
            return subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
                pass_fds=[one.fileno() for one in self.listeners],
            )

    def revived(self) -> int | None:
        """Restart it if it has ended. Return its exit code, or None if it is alive.

        Raises:
            HdmError: it has ended too often recently.
        """
        code = self.process.poll()
        if code is None:
            return None
        now = time.monotonic()
        self.restarts = [begun for begun in self.restarts if now - begun < RESTARTS_SEC]
        if len(self.restarts) == RESTARTS:
            raise HdmError(
                f"{self.name} ended {RESTARTS + 1} times within {RESTARTS_SEC / 60:.0f} min, now"
                f" with exit code {code}",
                where=self.log,
                do="look there, then start again",
            )
        self.restarts.append(now)
        with contextlib.suppress(ProcessLookupError):  # its children may still hold the port
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = self._start()
        return code


@contextlib.contextmanager
def running(
    name: str, command: list[str], environment: Mapping[str, str], root: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A service that is not restarted."""
    with Service(name, command, environment, root, folder) as service:
        yield service.process


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        # The whole group, since servers start processes of their own, which may outlive the first
        # one.
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SEC)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> None:
    """On Linux, have this process receive SIGTERM when its parent dies, even by SIGKILL."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def listener(port: int, host: str = LOOPBACK) -> socket.socket | None:
    """A socket that listens at that port (0: any free one); None if it cannot be opened there.

    Connections wait in its queue until a server accepts them, so clients do not notice when the
    server on this socket is restarted.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    opened = socket.socket(family)
    try:
        # Otherwise connections in TIME_WAIT would block the port for a minute after a server's end.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen()
    except OSError:
        opened.close()
        return None
    return opened


def nearest_listener(port: int) -> socket.socket:
    """A loopback socket that listens at that port, at one of the next ports, or at any free one.

    Raises:
        HdmError: no port is free.
    """
    for wanted in (*range(port, min(port + NEIGHBOURS, 65536)), 0):
        if (found := listener(wanted)) is not None:
            return found
    raise HdmError(f"no port of {LOOPBACK} is free")


def wait_for(
    address: str, process: subprocess.Popen[bytes], root: Path, name: str = "prefect"
) -> None:
    """Wait until the address answers.

    Args:
        name: of the service, as given to `running`.

    Raises:
        HdmError: it does not answer in time, or its process ended. The error quotes the last error
            in its log.
    """
    # The socket accepts connections before the server answers on it: hence a time-out for each
    # request.
    deadline = time.monotonic() + START_SEC
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(address, timeout=2),
        ):
            return
        time.sleep(POLL_SEC)
    log = services(root) / f"{name}.log"
    ended = process.poll() is not None
    what = f"{name} ended while it started" if ended else f"{address} does not answer"
    raise HdmError(f"{what}{_last_error(log)}", where=log, do="the log there says more")


def _last_error(log: Path) -> str:
    """The last exception in a log, with a colon before it; empty if there is none."""
    found = ERROR_LINE.findall(log.read_text(encoding="utf-8", errors="replace"))
    return f": {found[-1][:ERROR_CHARS]}" if found else ""
