"""Where Prefect's and MLflow's data lie, and whether an `hdm serve` of this store is alive.

<store, or HDM_STATE>/.services/
                  prefect.db  mlflow.db       their databases
                  results/    mlartifacts/    what they keep beside them
                  serve.json  serve.lock      the living `hdm serve`
                  password    ports.json      of Prefect's pages; what they are served at
                  runs/<pid>.json             a run under way
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired
from urllib.parse import urlsplit

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from hdm.errors import HdmError
from hdm.files import FORBIDDEN, explain_os_error, write_json
from hdm.store import is_locked, locked, state_root

LOOPBACK = "http://127.0.0.1"
PREFECT_DEFAULTS = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "hdm",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",  # the first start makes the database
}
"""What pyproject.toml and the prefect.toml of `hdm init` say to Prefect's own command."""


@dataclass(frozen=True)
class Serving:
    """A living `hdm serve`: its pid, its children's pids, and the addresses of the pages."""

    pid: int
    prefect: str
    mlflow: str
    children: dict[str, int] = field(default_factory=dict)


class _Record(TypedDict):
    """What has to be in runs/<pid>.json."""

    pid: int
    pipeline: str
    flow_run: str | None
    api: str | None
    started: float
    worker: NotRequired[int]


SERVING = TypeAdapter(Serving)
RECORD = TypeAdapter(_Record)


def services(root: Path) -> Path:
    """The store's folder for services, made if need be; nobody else on this machine can read it.

    Raises:
        HdmError: it cannot be made or written; DoesNotFitError: the disk is full.
    """
    folder = _folder(root)
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK) and os.access(folder / "runs", os.W_OK)
    except OSError as error:
        if error.errno not in FORBIDDEN:
            raise explain_os_error(error, folder) from error
        writable = False
    if not writable:
        raise HdmError(
            "a run writes the data of Prefect and MLflow, logs and reports here, and this folder"
            " cannot be written",
            where=folder,
            do="name a folder of your own for them: HDM_STATE=FOLDER before the command",
        )
    state = folder.stat()
    if state.st_mode & 0o077 and state.st_uid == os.getuid():
        with contextlib.suppress(PermissionError):  # a file system without permissions
            folder.chmod(0o700)
    return folder


def visible(root: Path) -> bool:
    """Whether this user may look at the services: only whoever started them may."""
    folder = _folder(root)
    return not folder.exists() or os.access(folder, os.R_OK | os.X_OK)


def _folder(root: Path) -> Path:
    return state_root(root) / ".services"


def password(root: Path) -> str:
    """What Prefect's server of this store asks for, `hdm:` and 32 characters; made the first time.

    Whoever has it can have commands run, as this user, by the worker of `hdm serve`.
    """
    path = services(root) / "password"
    with contextlib.suppress(FileNotFoundError):
        if found := path.read_text().strip():
            return found
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two that begin at once, the second reads the first's
        found = file.read().strip()
        if not found:
            found = f"hdm:{secrets.token_urlsafe(24)}"
            file.write(f"{found}\n")
    return found


def serving(root: Path) -> Serving | None:
    """The `hdm serve` that lives on this store, or None: its lock dies with it, so a file that it
    left behind says nothing.
    """
    if not visible(root) or not is_locked(_folder(root) / "serve.lock"):
        return None
    with contextlib.suppress(OSError, ValueError):
        return SERVING.validate_json((_folder(root) / "serve.json").read_bytes())
    return None


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Be the only `hdm serve` of this store.

    Raises:
        LockedError: there is one.
    """
    folder = services(root)
    with locked(folder / "serve.lock", "the services of this store"):
        (folder / "serve.json").unlink(missing_ok=True)  # of one that was killed
        try:
            yield
        finally:
            (folder / "serve.json").unlink(missing_ok=True)


def announce(root: Path, state: Serving) -> None:
    """Tell everyone where the pages are."""
    write_json(services(root) / "serve.json", asdict(state))


@contextlib.contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Be in this block alone, of all processes with that file; wait for those that are."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def under_way(
    root: Path, pipeline: str, flow_run: str | None = None, **more: Any
) -> Iterator[None]:
    """Let `hdm status` and `hdm stop` know of this run, and `hdm serve` of its death. Inside
    another such block: tell more of that run.

    Args:
        root: the store.
        pipeline: its name.
        more: facts for its record.
        flow_run: Prefect's id of it. The record of a run that ends in an exception is kept: Prefect
            may not know of its end.
    """
    path = services(root) / "runs" / f"{os.getpid()}.json"
    lock = path.with_suffix(".lock")
    facts = {"pid": os.getpid(), "pipeline": pipeline, "flow_run": flow_run}
    if is_locked(lock):  # by this process, whose number it has
        known = json.loads(path.read_bytes())
        write_json(path, {**known, **facts, "flow_run": flow_run or known["flow_run"]})
        yield
        return
    with locked(lock, pipeline):
        facts |= {"started": time.time(), "api": os.environ.get("PREFECT_API_URL"), **more}
        write_json(path, facts)
        try:
            yield
        except SystemExit as end:
            if not end.code:
                forget(path)
            raise
        else:
            forget(path)


def forget(record: Path) -> None:
    """Nothing is left to be done about that run."""
    record.unlink(missing_ok=True)
    record.with_suffix(".lock").unlink(missing_ok=True)


def runs(root: Path) -> list[dict[str, Any]]:
    """The runs under way: pid, pipeline, started (seconds since 1970), flow_run and api (what
    Prefect calls it, and where).
    """
    return [record for path, record in _records(root) if is_locked(path.with_suffix(".lock"))]


def dead_runs(root: Path) -> dict[Path, dict[str, Any]]:
    """Records of the runs whose process is gone, though nobody knows whether Prefect was told."""
    return {
        path: record for path, record in _records(root) if not is_locked(path.with_suffix(".lock"))
    }


def _records(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in sorted((_folder(root) / "runs").glob("*.json")) if visible(root) else []:
        with contextlib.suppress(OSError, ValueError):
            found.append((path, dict(RECORD.validate_json(path.read_bytes()))))
    return found


def stop_runs(found: Iterable[dict[str, Any]], root: Path, timeout_sec: float) -> list[int]:
    """Have these runs save and stop; the pids of those that have not after so many seconds."""
    pids = {record["pid"] for record in found}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_sec
    while True:
        left = sorted(pids & {record["pid"] for record in runs(root)})
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def database_address(driver: str, path: Path) -> str:
    """SQLAlchemy's address of an SQLite file, whatever characters its path holds.

    Args:
        driver: `aiosqlite` or `pysqlite`. Always named: for a bare `sqlite:` MLflow makes the
            folder that the address spells before it decodes it.
    """
    from sqlalchemy import URL  # costs 0.2 s

    address = URL.create(f"sqlite+{driver}", database=str(path))
    return address.render_as_string(hide_password=False)


def _home_is_usable() -> bool:
    """Whether this user has a home to write to; in a container often not."""
    try:
        return os.access(Path.home(), os.W_OK)
    except RuntimeError:  # neither HOME nor an entry in /etc/passwd
        return False


def prefect_environment(root: Path) -> dict[str, str]:
    """The settings of a Prefect server that keeps its data in the store.

    A `prefect` command for which there is no server starts one by itself, which takes its settings
    from here too.
    """
    folder = services(root)
    home = {} if _home_is_usable() else {"PREFECT_HOME": str(folder / "prefect")}
    return {
        **PREFECT_DEFAULTS,
        **home,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_address(
            "aiosqlite", folder / "prefect.db"
        ),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(folder / "results"),
        "PREFECT_SERVER_MEMO_STORE_PATH": str(folder / "prefect_memo.toml"),
        "PREFECT_SERVER_API_AUTH_STRING": password(root),
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": LOOPBACK,  # Prefect's default is any
    }


def prefect_access(root: Path, url: str | None) -> dict[str, str]:
    """Prefect's settings for talking to the living `hdm serve` of this store; {} if there is none,
    or the user means another server.

    Args:
        url: the PREFECT_API_URL that the user has set. A server that is not this store's never gets
            its password.
    """
    alive = serving(root)
    if alive is None or (url is not None and not _same_server(url, alive.prefect)):
        return {}
    return {
        "PREFECT_API_URL": f"{alive.prefect}/api",
        "PREFECT_API_AUTH_STRING": password(root),
    }


def _same_server(url: str, ours: str) -> bool:
    theirs = urlsplit(url)
    own = urlsplit(ours)
    with contextlib.suppress(ValueError):  # no port at all
        return theirs.hostname in ("127.0.0.1", "localhost") and theirs.port == own.port
    return False
