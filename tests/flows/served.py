"""An `hdm serve` that tests start, ask and kill, as a user does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from flows.prefect_api import post
from flows.processes import nearest_listener
from tasks.services import Serving, password, services, serving
from tests.acquisition.misbehaving import Connection, Site, http, png

PROJECT = Path(__file__).parents[2]
BEYOND, PROXY = "127.0.0.2", "https://images.example"
START_SEC, STOP_SEC, WAIT_SEC = 600.0, 90.0, 300.0
TEMPORARY = """
import os, sys
from flows.commands.run import begin_server, prepare, server
from hdm.store import store_root
root = store_root()
prepare(root, False)
with server(root, begin_server(root)):
    from prefect.settings import get_current_settings
    print(get_current_settings().api.url.removesuffix("/api"), flush=True)
    sys.stdin.read()
"""
"""The server that `hdm run` starts for itself: prints its address, ends with its input."""
HDM, PREFECT = (str(Path(sys.executable).with_name(name)) for name in ("hdm", "prefect"))


@dataclass
class Served:
    """A living `hdm serve` of a store of its own."""

    root: Path
    process: subprocess.Popen[bytes]

    @property
    def state(self) -> Serving:
        found = serving(self.root)
        assert found is not None
        return found

    @property
    def log(self) -> str:
        return (self.root / "serve.log").read_text()

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command as it is typed in the project's folder."""
        program = HDM if words[0] == "hdm" else PREFECT
        return subprocess.run(
            [program, *words[1:]],
            cwd=PROJECT,
            env=environment(self.root),
            capture_output=True,
            text=True,
            timeout=WAIT_SEC,
            check=False,
        )

    def schedule(self, deployment: str, overrides: Sequence[str]) -> str:
        """Have a deployment run, as Prefect's page does; the flow run's id."""
        asked = {"deployments": {"name": {"any_": [deployment]}}}
        (found,) = self.post("deployments/filter", asked)
        run = {
            "state": {"type": "SCHEDULED"},
            "parameters": {"overrides": list(overrides)},
            "idempotency_key": str(uuid.uuid4()),  # what is asked again makes one run
        }
        flow_run: str = self.post(f"deployments/{found['id']}/create_flow_run", run)["id"]
        return flow_run

    def post(self, path: str, body: object) -> Any:
        """What Prefect's server answers; asked again while it is too busy, as its client does."""
        deadline = time.monotonic() + WAIT_SEC
        while True:
            try:
                return post(f"{self.state.prefect}/api/{path}", body, password(self.root))
            except OSError as error:
                is_refused = isinstance(error, HTTPError) and error.code < 500
                if is_refused or time.monotonic() > deadline:
                    raise
            time.sleep(1.0)

    def states(self) -> dict[str, str]:
        return states(self.root)

    def kill(self, name: str) -> None:
        os.kill(self.state.children[name], signal.SIGKILL)


def with_tables(root: Path, tables: Path) -> Path:
    """The store, with the tables of Prefect that its first server would make."""
    shutil.copyfile(tables, services(root) / "prefect.db")
    return root


def states(root: Path) -> dict[str, str]:
    """Ids of flow runs → their states, from the database: also when no server lives."""
    path = root / ".services" / "prefect.db"
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return dict(database.execute("SELECT id, state_name FROM flow_run").fetchall())


def until(what: Callable[[], object], seconds: float = WAIT_SEC) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def environment(root: Path) -> dict[str, str]:
    """What a user's shell holds, and this store."""
    ours = {
        "HDM_STORE": str(root),
        "PYTHONPATH": str(PROJECT),
        "HDM_TRACKING": "off",
        "PREFECT_WORKER_QUERY_SECONDS": "1",  # for new runs; else tests wait up to 10 s for each
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return {**kept, **ours}


class HeldBack(Site):
    """A site with a list of pictures, which it gives when it is told to: whoever downloads them
    waits, and takes no processor time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given = threading.Event()
        address = f"http://127.0.0.1:{self.port}"
        names = [f"/{number}.png" for number in range(4)]
        lines = ["url", *(address + name for name in names)]
        self.pages["/list.csv"] = http("\n".join(lines).encode())
        self.pages |= dict.fromkeys(names, self._picture)
        self.overrides = [
            "download.kind=urls",
            f"download.source={address}/list.csv",
            "download.timeout_sec=1000",
        ]
        """Of the pipeline `demo`, for its download."""

    def _picture(self, connection: Connection) -> None:
        self.given.wait()
        number = int(connection.path.strip("/").removesuffix(".png"))
        connection.wfile.write(http(png(number)))

    @property
    def is_asked(self) -> bool:
        """Whether somebody waits for pictures, or has got some."""
        return self.asked["/0.png"] > 0


@contextlib.contextmanager
def held_back() -> Iterator[HeldBack]:
    """Such a site, which gives its pictures at the end of the block at the latest."""
    with HeldBack() as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site
        site.given.set()
        site.shutdown()


@contextlib.contextmanager
def serve(root: Path, *options: str) -> Iterator[Served]:
    """`hdm serve` of that store at free ports."""
    with nearest_listener(0) as one, nearest_listener(0) as other:
        ports = [str(probe.getsockname()[1]) for probe in (one, other)]
    ours = ("--prefect-port", ports[0], "--mlflow-port", ports[1])
    with (root / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [HDM, "serve", *ours, *options],
            cwd=PROJECT,
            env=environment(root),
            stdout=log,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C reaches this group alone
        )
    found = Served(root, process)
    try:
        until(lambda: serving(root) is not None or process.poll() is not None, START_SEC)
        assert process.poll() is None, found.log
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_SEC)
    assert code == 0
    assert password(root) not in found.log


def certificate(folder: Path) -> tuple[str, str]:
    """A certificate for BEYOND, signed by itself, and its key."""
    files = str(folder / "certificate.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", f"/CN={BEYOND}",
         "-addext", f"subjectAltName=IP:{BEYOND}", "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return files
