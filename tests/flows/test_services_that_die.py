"""What becomes of a run when Prefect's server, MLflow, the worker or `hdm serve` itself is killed
or stopped.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.processes import Service, nearest_listener
from hdm.errors import HdmError
from tasks.services import runs
from tests.faults.outage import LOG, NOTICED, outage
from tests.flows.served import (
    HDM,
    PROJECT,
    STOP_SEC,
    HeldBack,
    Served,
    environment,
    held_back,
    serve,
    states,
    until,
    with_tables,
)

PATIENT = """
import sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
from prefect.client.base import PrefectHttpxSyncClient
from tasks.patience import hurry, install

class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

install()
port = int(sys.argv[1])

def come_up():
    time.sleep(2)
    HTTPServer(("127.0.0.1", port), Answers).handle_request()

threading.Thread(target=come_up, daemon=True).start()
with PrefectHttpxSyncClient() as client:  # has never been answered
    print(client.post(f"http://127.0.0.1:{port}/", json={}).status_code, flush=True)
    hurry()
    try:
        client.post(f"http://127.0.0.1:{port}/", json={})
    except httpx.ConnectError:
        print("gave up")
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, prefect_tables: Path) -> Iterator[Served]:
    with serve(with_tables(tmp_path_factory.mktemp("served"), prefect_tables)) as found:
        yield found


@pytest.fixture
def site() -> Iterator[HeldBack]:
    with held_back() as found:
        yield found


def start(served: Served, site: HeldBack) -> str:
    """Have download-images run from its deployment; the flow run's id, once its process waits for
    the site's pictures.
    """
    flow_run = served.schedule("download-images", site.overrides)
    until(lambda: site.is_asked)
    return flow_run


def pid_of(served: Served, flow_run: str) -> int:
    pids: list[int] = [run["pid"] for run in runs(served.root) if run["flow_run"] == flow_run]
    (pid,) = pids
    return pid


def test_a_service_that_cannot_stay_alive_is_given_up_after_ten_starts(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo No space left on device; exit 1"]
    with Service("mlflow", command, os.environ, tmp_path, tmp_path) as service:
        for _ in range(10):
            service.process.wait()
            assert service.revived() == 1
        service.process.wait()
        with pytest.raises(HdmError, match="mlflow ended 11 times within 10 min") as caught:
            service.revived()
    log = tmp_path / ".services" / "mlflow.log"
    assert str(log) in str(caught.value)
    assert log.read_text().count("No space left on device") == 11


def test_a_request_waits_for_its_server_until_the_run_is_told_to_stop(free_port: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PATIENT, str(free_port)],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "PREFECT_CLIENT_MAX_RETRIES": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["200", "gave up"]


def test_states_are_right_soon_after_a_server_that_missed_a_stage_s_end_is_back(
    tmp_path: Path, prefect_tables: Path
) -> None:
    (tmp_path / "prefect").mkdir()
    shutil.copyfile(prefect_tables, tmp_path / "prefect" / "prefect.db")
    assert outage(tmp_path, 5) is None
    told = (tmp_path / LOG).read_text()
    assert told.count(NOTICED) == told.count("answers again") == 1


@pytest.fixture
def free_port() -> int:
    with nearest_listener(0) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_a_run_goes_on_when_all_three_services_are_killed(served: Served, site: HeldBack) -> None:
    flow_run = start(served, site)
    before = served.state
    for name in ("worker", "prefect", "mlflow"):
        served.kill(name)
    site.given.set()  # so that it ends while there is no server to tell
    until(lambda: served.states()[flow_run] == "Completed")
    until(lambda: all(served.state.children[name] != pid for name, pid in before.children.items()))
    assert (served.state.prefect, served.state.mlflow) == (before.prefect, before.mlflow)


def test_a_run_is_stopped_after_its_worker_was_killed(served: Served, site: HeldBack) -> None:
    flow_run = start(served, site)
    served.kill("worker")
    done = served.command("hdm", "stop")
    assert done.returncode == 0, done.stderr
    until(lambda: served.states()[flow_run] == "Cancelled")
    assert runs(served.root) == []
    last = (served.root / ".services" / "runs.log").read_text().rstrip().split("\n")
    ended = next(place for place, line in enumerate(last) if "Finished in state Cancelled" in line)
    assert not any("Traceback" in line for line in last[ended:])
    assert len(last) - ended <= 2


def test_a_run_is_cancelled_on_prefect_s_page_after_its_worker_was_killed(
    served: Served, site: HeldBack
) -> None:
    flow_run = start(served, site)
    old = served.state.children["worker"]
    served.kill("worker")
    until(lambda: served.state.children["worker"] != old)
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    assert served.post(f"flow_runs/{flow_run}/set_state", cancelling)["status"] == "ACCEPT"
    until(lambda: served.states()[flow_run] == "Cancelled")


def test_a_run_that_a_dead_worker_had_claimed_is_started_by_the_next(
    served: Served, site: HeldBack
) -> None:
    site.given.set()
    worker = served.state.children["worker"]
    os.kill(worker, signal.SIGSTOP)
    claimed = served.schedule("download-images", site.overrides)
    pending = {"state": {"type": "PENDING"}, "force": True}  # as the worker does
    assert served.post(f"flow_runs/{claimed}/set_state", pending)["status"] == "ACCEPT"
    os.kill(worker, signal.SIGKILL)
    until(lambda: served.states()[claimed] == "Completed")


def test_a_run_that_died_with_its_worker_is_crashed(served: Served, site: HeldBack) -> None:
    flow_run = start(served, site)
    pid = pid_of(served, flow_run)
    served.kill("worker")
    os.kill(pid, signal.SIGKILL)
    until(lambda: served.states()[flow_run] == "Crashed")


def test_hdm_run_s_own_server_is_started_again(
    tmp_path: Path, prefect_tables: Path, site: HeldBack
) -> None:
    with_tables(tmp_path, prefect_tables)
    settings = [word for one in site.overrides for word in ("--set", one)]
    with (
        (tmp_path / "run.log").open("wb") as log,
        subprocess.Popen(
            [HDM, "run", "demo", "--until", "download", *settings],
            cwd=PROJECT,
            env=environment(tmp_path),
            stdout=log,
            stderr=log,
        ) as run,
    ):
        until(lambda: run.poll() is not None or site.is_asked)
        (server,) = (
            child
            for child in psutil.Process(run.pid).children()
            if "flows.prefect_server" in child.cmdline()
        )
        server.kill()
        site.given.set()
        code = run.wait()
    told = (tmp_path / "run.log").read_text()
    assert code == 0, told
    assert "started again" in told
    assert set(states(tmp_path).values()) <= {"Completed"}


def test_a_killed_serve_s_run_is_seen_later_and_a_stopped_one_s_is_stopped_first(
    served: Served, site: HeldBack
) -> None:
    """The last in this file: it kills the services that the others use."""
    killed = start(served, site)
    os.kill(pid_of(served, killed), signal.SIGKILL)
    served.process.kill()
    served.process.wait()
    served.process.returncode = 0
    with serve(served.root) as again, held_back() as other:
        until(lambda: again.states()[killed] == "Crashed")
        stopped = start(again, other)
        again.process.send_signal(signal.SIGTERM)
        again.process.wait(STOP_SEC)
    assert again.states()[stopped] == "Cancelled"
    assert "Finished in state Cancelled" in (again.root / ".services" / "runs.log").read_text()
    assert "stopping demo" in again.log
