"""`hdm serve`: Prefect's server, MLflow's server and a worker, started and stopped together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter
from rich.markup import escape

from flows.dead_runs import POOL, cancel_orphans, release_claims, remove_automation, settle
from flows.deployments import deploy
from flows.processes import (
    LOOPBACK,
    POLL_SEC,
    Encrypted,
    Service,
    bypass_proxy,
    listener,
    nearest_listener,
    pages_at,
    prefect_command,
    prefect_server_command,
    start_lock,
    wait_for,
)
from hdm.child import child_environment
from hdm.databases import check_databases, databases
from hdm.definitions import own_file
from hdm.errors import ConfigError, InputError
from hdm.files import check_temporary, write_json
from hdm.messages import Terminal
from tasks.configuration import FILE_VARIABLE, STORE_VARIABLE
from tasks.moved import follow_store
from tasks.services import (
    Serving,
    alone,
    alone_at,
    announce,
    password,
    prefect_environment,
    runs,
    services,
    stop_runs,
)
from tasks.tracking import server_command, server_environment

PREFECT_PORT = 4200
MLFLOW_PORT = 5000
SAVE_SEC, SETTLE_SEC = 35.0, 5.0  # training saves within 20
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
"""Without `*`, which the check of host names would take for a pattern that matches every name."""
PORTS = TypeAdapter(dict[str, Annotated[int, Field(ge=0, lt=65536)]])
console = Terminal(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Reach:
    """How other machines reach Prefect's pages, and what protects the connection.

    Args:
        host: name or address of this machine at which Prefect's pages are served too; None: only
            on loopback.
        certificate, key: files in PEM format, for TLS at that host.
        proxy: the https:// address of a reverse proxy that people use instead.
    """

    host: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    proxy: str | None = None

    def check(self) -> None:
        """Refuse options that would send the password unencrypted.

        Raises:
            ConfigError: a host without TLS and without a proxy; options that do not fit together.
            InputError: the certificate or the key cannot be used.
        """
        if self.proxy is not None and _https_origin(self.proxy) is None:
            raise ConfigError(
                f"not the address of a reverse proxy: {self.proxy}",
                where="--behind-proxy",
                do="give scheme, name and port, as https://images.example.org",
            )
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("--tls-certificate and --tls-key belong together")
        if self.host is None:
            if self.certificate is not None:
                raise ConfigError("TLS is for a host of this machine", do="add --host")
            return
        if not HOST_NAME.fullmatch(self.host.lower()):
            raise ConfigError(
                "not the name or IPv4 address of a host",
                where=f"--host {self.host}",
                do="for an IPv6 address, give a name that leads to it",
            )
        if self.certificate is None and self.proxy is None:
            raise ConfigError(
                "beyond this machine the password would travel in the clear",
                where=f"--host {self.host}",
                do=(
                    "add --tls-certificate FILE --tls-key FILE, or --behind-proxy https://… if a"
                    " reverse proxy does TLS"
                ),
            )
        if self.certificate is not None and self.key is not None:
            # Tried now, before anything starts.
            _check_certificate(self.certificate, self.key)

    def pages(self, port: int) -> list[str]:
        """The origins of Prefect's pages, those on this machine first."""
        found = pages_at(port)
        if self.host is not None and self.certificate is not None:
            found.append(f"https://{self.host.lower()}:{port}")
        if self.proxy is not None and (origin := _https_origin(self.proxy)):
            found.append(origin)
        return found

    def open(self, port: int) -> socket.socket | None:
        """A socket that listens at the host; None if no host is given.

        Raises:
            InputError: it is not an address of this machine, or its port is in use.
        """
        if self.host is None:
            return None
        try:
            found = listener(port, self.host)
        except socket.gaierror as error:
            raise InputError(f"no such host: {error}", where=f"--host {self.host}") from error
        if found is None:
            raise InputError(
                f"port {port} cannot be opened there",
                where=f"--host {self.host}",
                do="name one address of this machine, not 0.0.0.0, and a free --prefect-port",
            )
        return found


def _https_origin(address: str) -> str | None:
    """The origin of an https:// address, as a browser writes it; None if the address has another
    scheme, or more than a name and a port.
    """
    try:
        parts = urlsplit(address)
        name = parts.hostname or ""
        port = parts.port
    except ValueError:  # a port that is no number, half of an IPv6 address
        return None
    bare = not (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme != "https" or not bare or not HOST_NAME.fullmatch(name):
        return None
    # A browser leaves the default port out of `Origin`, which is compared as text.
    return f"https://{name}" if port in (None, 443) else f"https://{name}:{port}"


def _check_certificate(certificate: Path, key: Path) -> None:
    # Without this callback OpenSSL would ask for the passphrase on the terminal.
    def refuse_passphrase() -> str:
        raise InputError(
            "the key has a passphrase",
            where=key,
            do=f"write one without: openssl pkey -in {key} -out …",
        )

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, refuse_passphrase)
    except OSError as error:
        raise InputError(
            f"TLS does not accept this certificate with this key: {error}",
            where=f"{certificate}, {key}",
            do="give the chain and its key, both in PEM format",
        ) from error


def serve_pages(
    root: Path,
    file: Path | None,
    prefect_port: int | None,
    mlflow_port: int | None,
    reach: Reach = Reach(),
) -> None:
    """Serve until SIGTERM or Ctrl-C. Then the runs that use these services save and stop, and after
    them the services.

    Args:
        root: the store.
        file: a person's own pipelines.yaml; None: the one in this folder, if there is one.
        prefect_port, mlflow_port: None: the port that this store used before, or else the service's
            default.
        reach: where Prefect's pages are served beyond loopback.

    Raises:
        LockedError: this store is served already.
        DamagedError: a database cannot be read.
        ConfigError, InputError: a host that cannot be served, or not safely.
        HdmError: a process did not start, or ended again and again.
    """
    reach.check()
    own = own_file(file)
    folder = own.resolve().parent if own else Path.cwd()
    bypass_proxy()
    check_temporary()
    check_databases(databases(root))
    # On a signal everything on the stack ends in reverse order: first the runs, then the services.
    with alone(root), _until_signal(), contextlib.ExitStack() as stack, _stop_announced():
        # All sockets first: a port or host that cannot be had is reported before anything starts.
        opened = stack.enter_context(kept_port(root, "prefect", prefect_port, PREFECT_PORT))
        for_mlflow = stack.enter_context(kept_port(root, "mlflow", mlflow_port, MLFLOW_PORT))
        port = opened.getsockname()[1]
        mlflow_at = for_mlflow.getsockname()[1]
        listeners = [opened]
        encrypted = None
        beyond = reach.open(port)
        if beyond is not None:
            stack.enter_context(beyond)
            if reach.certificate is not None and reach.key is not None:
                encrypted = Encrypted(beyond, reach.certificate, reach.key)
            else:
                listeners.append(beyond)
        pages = reach.pages(port)
        prefect = f"http://{LOOPBACK}:{port}"
        # Clients on this machine always use loopback, whatever is served beyond it.
        mlflow = f"http://{LOOPBACK}:{mlflow_at}"
        environment = _environment(root, own, pages)
        # Before MLflow's server opens its database.
        follow_store(root)
        commands = {
            "prefect": prefect_server_command(listeners, pages, encrypted),
            "mlflow": server_command(root, for_mlflow, reach.proxy),
            "worker": prefect_command(
                "worker", "start", "--pool", POOL, "--type", "process", "--name", POOL
            ),
        }
        sockets = {
            "prefect": [*listeners, *([encrypted.listener] if encrypted else [])],
            "mlflow": [for_mlflow],
        }

        def begin(name: str) -> Service:
            extra = server_environment(reach.proxy) if name == "mlflow" else {}
            service = Service(
                name,
                commands[name],
                {**environment, **extra},
                root,
                folder,
                sockets.get(name, ()),
            )
            return stack.enter_context(service)

        console.print("starting; the first time takes a while: both make their databases")
        # Prefect has to answer before deployments are made, and the pool has to be there before the
        # worker starts. MLflow starts meanwhile.
        with alone_at(start_lock(root)):
            started = {name: begin(name) for name in ("prefect", "mlflow")}
            wait_for(f"{prefect}/api/health", started["prefect"].process, root)
        deploy(root, own, environment, folder)
        started["worker"] = begin("worker")
        wait_for(f"{mlflow}/health", started["mlflow"].process, root, "mlflow")
        served = _announced(root, prefect, mlflow, started)
        # Last onto the stack, so it is called first.
        stack.callback(_save_runs, root, served)
        _tell(root, pages, mlflow)
        _watch(started, root, served)


def _announced(root: Path, prefect: str, mlflow: str, started: Mapping[str, Service]) -> Serving:
    pids = {name: service.process.pid for name, service in started.items()}
    served = Serving(os.getpid(), prefect, mlflow, pids)
    announce(root, served)
    return served


def _save_runs(root: Path, served: Serving) -> None:
    """Have the runs that use these services save and stop, while the services still record it."""
    found = [one for one in runs(root) if (one.get("api") or "").startswith(served.prefect)]
    for one in found:
        console.print(f"stopping {escape(one['pipeline'])} (pid {one['pid']})")
    for pid in stop_runs(found, root, SAVE_SEC):
        console.print(f"pid {pid} still runs after {SAVE_SEC:.0f} s")


def _tell(root: Path, pages: list[str], mlflow: str) -> None:
    beyond = [page for page in pages if urlsplit(page).scheme == "https"]
    # A log is read by more people than a terminal.
    secret = password(root) if sys.stderr.isatty() else f"in {services(root) / 'password'}"
    console.print(
        f"Prefect   {'  '.join([pages[0], *beyond])}\n"
        f"password  {escape(secret)}  (Prefect's pages ask for it once)\n"
        f"MLflow    {mlflow}\n"
        f"store     {escape(str(root))}\n"
        "run       prefect deployment run full-pipeline\n"
        "stop      Ctrl-C"
    )


def kept_port(root: Path, name: str, asked: int | None, default: int) -> socket.socket:
    """A socket at the port that this store's pages had before, for which browsers remember the
    password.
    """
    record = services(root) / "ports.json"
    ports: dict[str, int] = {}
    try:
        ports = PORTS.validate_json(record.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        console.print(f"{record} cannot be read: the pages may be at other ports than before")
    wanted = ports.get(name, default) if asked is None else asked
    opened = nearest_listener(wanted)
    port = opened.getsockname()[1]
    if wanted not in (port, 0):
        console.print(f"another program has port {wanted}: {name} is at port {port}")
    # Also if it is a substitute: the pages stay where browsers found them last.
    write_json(record, {**ports, name: port})
    return opened


def _environment(root: Path, own: Path | None, pages: list[str]) -> dict[str, str]:
    return {
        **child_environment(),
        **prefect_environment(root),
        "PREFECT_API_URL": f"{pages[0]}/api",
        "PREFECT_API_AUTH_STRING": password(root),
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(pages),
        "PREFECT_SERVER_UI_API_URL": "/api",  # relative to the address that the page came from
        "DO_NOT_TRACK": "1",
        STORE_VARIABLE: str(root),
        FILE_VARIABLE: str(own.resolve()) if own else "",
    }


@contextlib.contextmanager
def _until_signal() -> Iterator[None]:
    """End the block at the first SIGTERM or Ctrl-C, and ignore later ones."""

    def stop(number: int, frame: FrameType | None) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)
        raise KeyboardInterrupt  # without a message: the signal may have interrupted a print

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _stop_announced() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.print("stopping Prefect, MLflow and the worker")
        raise


def _watch(started: Mapping[str, Service], root: Path, served: Serving) -> None:
    """Restart services that have ended, and report dead runs to Prefect."""
    due = 0.0
    tidied = False
    while True:
        for name, service in started.items():
            code = service.revived()
            if code is not None:
                console.print(f"{name} ended with exit code {code}; started again")
                # Its pid has changed.
                served = _announced(root, served.prefect, served.mlflow, started)
        if time.monotonic() > due:
            # Prefect may be restarting or too busy to answer; the next round tries again.
            with contextlib.suppress(OSError, ValueError):
                if not tidied:
                    remove_automation(root, served)
                    tidied = True
                settle(root, served)
                release_claims(root, served, started["worker"].since)
                cancel_orphans(root, served)
            due = time.monotonic() + SETTLE_SEC
        time.sleep(POLL_SEC)
