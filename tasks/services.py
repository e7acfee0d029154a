"""The data of Prefect and MLflow, the running `hdm serve` of a store, and the runs in progress.

<store, or HDM_STATE>/.services/
                  prefect.db  mlflow.db       their databases
                  results/    mlartifacts/    their files
                  serve.json  serve.lock      the running `hdm serve`
                  password    ports.json      of Prefect's pages; the ports of all pages
                  runs/<pid>.json             a run in progress
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
PREFECT_DATABASE = "prefect.db"
PREFECT_DEFAULTS = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "hdm",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The first start creates the database.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
}
"""The same settings as in pyproject.toml and in the prefect.toml that `hdm init` writes, which
serve Prefect's own command.
"""


@dataclass(frozen=True)
class Serving:
    """A running `hdm serve`: its pid, its children's pids, and the addresses of the pages."""

    pid: int
    prefect: str
    mlflow: str
    children: dict[str, int] = field(default_factory=dict)


class _Record(TypedDict):
    """The required content of runs/<pid>.json."""

    pid: int
    pipeline: str
    flow_run: str | None
    api: str | None
    started: float
    worker: NotRequired[int]


SERVING = TypeAdapter(Serving)
RECORD = TypeAdapter(_Record)


def services(root: Path) -> Path:
    """The store's folder for services, created if necessary. Other users of this machine cannot
    read it.

    Raises:
        HdmError: it cannot be created or written; DoesNotFitError: the disk is full.
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
    # The folder holds the password. Only its owner can change permissions.
    state = folder.stat()
    if state.st_mode & 0o077 and state.st_uid == os.getuid():
        with contextlib.suppress(PermissionError):  # a file system without permissions
            folder.chmod(0o700)
    return folder


def visible(root: Path) -> bool:
    """Whether this user may read the services' folder; only the user who started them may."""
    folder = _folder(root)
    return not folder.exists() or os.access(folder, os.R_OK | os.X_OK)


def _folder(root: Path) -> Path:
    return state_root(root) / ".services"


def password(root: Path) -> str:
    """The password of this store's Prefect server, `hdm:` and 32 characters, created at first use.

    Anyone who has it can run commands as this user, through the worker of `hdm serve`.
    """
    path = services(root) / "password"
    with contextlib.suppress(FileNotFoundError):
        # An empty file is being written by another process, whose lock is waited for below.
        if password := path.read_text().strip():
            return password
    # The mode is set at creation: a chmod afterwards would leave a moment in which others can read
    # it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        # Of two processes that start at once, the second reads the first one's password.
        fcntl.flock(file, fcntl.LOCK_EX)
        password = file.read().strip()
        if not password:
            password = f"hdm:{secrets.token_urlsafe(24)}"
            file.write(f"{password}\n")
    return password


def serving(root: Path) -> Serving | None:
    """The running `hdm serve` of this store, or None. Its lock dies with it, so a file that it left
    behind means nothing.
    """
    # `_folder`, since `services` would create the folder.
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
    """Publish the addresses of the pages to other commands."""
    write_json(services(root) / "serve.json", asdict(state))


@contextlib.contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Hold this file's lock in the block, waiting for other processes that hold it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def under_way(
    root: Path, pipeline: str, flow_run: str | None = None, **more: Any
) -> Iterator[None]:
    """Record this run for `hdm status`, `hdm stop` and `hdm serve`, which notices its death. Inside
    another such block, update the record of that run.

    The record of a run that ends in an exception is kept, since Prefect may not know of its end.

    Args:
        root: the store.
        pipeline: its name.
        more: facts for its record.
        flow_run: Prefect's id of it.
    """
    path = services(root) / "runs" / f"{os.getpid()}.json"
    lock = path.with_suffix(".lock")
    facts = {"pid": os.getpid(), "pipeline": pipeline, "flow_run": flow_run}
    # A flow updates the record of the command that started it: its flow run is known only in here.
    if is_locked(lock):  # by this process, since the pid is its own
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
            # `sys.exit(0)` is a normal end.
            if not end.code:
                forget(path)
            raise
        else:
            forget(path)


def forget(record: Path) -> None:
    """Remove the record of a run about which nothing is left to do."""
    record.unlink(missing_ok=True)
    record.with_suffix(".lock").unlink(missing_ok=True)


def runs(root: Path) -> list[dict[str, Any]]:
    """The runs in progress: pid, pipeline, started (seconds since 1970), flow_run and api
    (Prefect's id of the run, and the address of its server).
    """
    return [record for _, record, is_alive in _records(root) if is_alive]


def dead_runs(root: Path) -> dict[Path, dict[str, Any]]:
    """Records of the runs whose process is gone, of whose end Prefect may not know."""
    return {path: record for path, record, is_alive in _records(root) if not is_alive}


def _records(root: Path) -> Iterator[tuple[Path, dict[str, Any], bool]]:
    """All records with their files, and whether the run is alive: its lock dies with it."""
    if not visible(root):
        return
    for path in sorted((_folder(root) / "runs").glob("*.json")):
        try:
            record = dict(RECORD.validate_json(path.read_bytes()))
        except (OSError, ValueError):
            continue  # it has just been removed, or is of another release
        yield path, record, is_locked(path.with_suffix(".lock"))


def stop_runs(records: Iterable[dict[str, Any]], root: Path, timeout_sec: float) -> list[int]:
    """Ask these runs to save and stop. Return the pids of those that have not by the time limit."""
    pids = {record["pid"] for record in records}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_sec
    while True:
        # Known by their locks: a pid may be another process's soon after a run's end.
        running = sorted(pids & {record["pid"] for record in runs(root)})
        if not running or time.monotonic() > deadline:
            return running
        time.sleep(0.2)


def database_address(driver: str, path: Path) -> str:
    """SQLAlchemy's address of an SQLite file, whatever characters its path contains.

    Args:
        driver: `aiosqlite` or `pysqlite`. It is always named: for a bare `sqlite:` MLflow creates
            the folder in the address before decoding it.
    """
    from sqlalchemy import URL  # its import takes 0.2 s

    address = URL.create(f"sqlite+{driver}", database=str(path))
    return address.render_as_string(hide_password=False)


def _home_is_usable() -> bool:
    """Whether this user has a writable home folder. In a container there is often none."""
    try:
        return os.access(Path.home(), os.W_OK)
    except RuntimeError:  # neither HOME nor an entry in /etc/passwd
        return False


def prefect_environment(root: Path) -> dict[str, str]:
    """The settings of a Prefect server that stores its data in the store.

    If a `prefect` command finds no server, it starts one itself, with these settings too.
    """
    folder = services(root)
    # Otherwise each run would begin with two of Prefect's warnings.
    home = {} if _home_is_usable() else {"PREFECT_HOME": str(folder / "prefect")}
    return {
        **PREFECT_DEFAULTS,
        **home,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_address(
            "aiosqlite", folder / PREFECT_DATABASE
        ),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(folder / "results"),
        "PREFECT_SERVER_MEMO_STORE_PATH": str(folder / "prefect_memo.toml"),
        "PREFECT_SERVER_API_AUTH_STRING": password(root),
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": LOOPBACK,  # Prefect's default is any
    }


def prefect_access(root: Path, url: str | None) -> dict[str, str]:
    """Prefect's settings for the running `hdm serve` of this store; {} if there is none, or if the
    user means another server.

    Args:
        url: the PREFECT_API_URL that the user has set. Only this store's server gets its password.
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
    with contextlib.suppress(ValueError):  # not a valid port
        return theirs.hostname in ("127.0.0.1", "localhost") and theirs.port == own.port
    return False
