"""Web pages and strangers against the servers of `hdm serve` and `hdm run`: what is refused, and
what still works.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import sqlite3
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets

from flows.processes import LOOPBACK
from tasks.services import password
from tests.acquisition import misbehaving
from tests.flows.browser import CHROMIUM, HOSTILE, browser
from tests.flows.served import (
    BEYOND,
    HDM,
    PROJECT,
    PROXY,
    TEMPORARY,
    Served,
    certificate,
    environment,
    serve,
    until,
    with_tables,
)

FOREIGN = "https://attacker.example"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Door:
    """A server, as anyone on this machine can reach it."""

    address: str
    root: Path
    tls: ssl.SSLContext | None = None

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; `Host` and `Origin` as given, the password only if `Authorization` is."""
        parts = urlsplit(self.address)
        where = (parts.hostname or "", parts.port)
        connection = (
            http.client.HTTPConnection(*where, timeout=30)
            if self.tls is None
            else http.client.HTTPSConnection(*where, timeout=30, context=self.tls)
        )
        data = None if body is None else json.dumps(body)
        sent = {"Content-Type": "application/json"} | headers
        with contextlib.closing(connection):
            connection.request(method, path, data, sent)
            got = connection.getresponse()
            found = {name.lower(): value for name, value in got.getheaders()}
            return Answer(got.status, found, got.read())

    @property
    def known(self) -> dict[str, str]:
        secret = password(self.root).encode()
        return {"Authorization": f"Basic {base64.b64encode(secret).decode()}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, prefect_tables: Path) -> Iterator[Served]:
    """In every way in which it can be reached."""
    root = with_tables(tmp_path_factory.mktemp("100%25 st?x é"), prefect_tables)
    pem, key = certificate(root)
    tls = ("--host", BEYOND, "--tls-certificate", pem, "--tls-key", key)
    with serve(root, *tls, "--behind-proxy", PROXY) as found:
        yield found


@pytest.fixture(scope="module")
def served_door(served: Served) -> Door:
    return Door(served.state.prefect, served.root)


@pytest.fixture(scope="module")
def temporary_door(
    tmp_path_factory: pytest.TempPathFactory, prefect_tables: Path
) -> Iterator[Door]:
    """The server that `hdm run` starts for itself."""
    root = with_tables(tmp_path_factory.mktemp("100%25 st?x é alone"), prefect_tables)
    with subprocess.Popen(
        [sys.executable, "-c", TEMPORARY],
        cwd=root,
        env=environment(root),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        yield Door(process.stdout.readline().strip(), root)
        process.communicate("")


@pytest.fixture(params=["served_door", "temporary_door"])
def door(request: pytest.FixtureRequest) -> Door:
    opened: Door = request.getfixturevalue(request.param)
    return opened


def test_a_page_of_another_origin_is_refused_even_with_the_password(door: Door) -> None:
    preflight = {
        "Origin": FOREIGN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,authorization",
    }
    answer = door.ask("OPTIONS", "/api/deployments/filter", **preflight)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers
    for origin in (
        FOREIGN,
        "null",
        "",
        door.address.replace("127.0.0.1", "127.0.0.2"),
        "http://127.0.0.1:1",
    ):
        for method, path in (("POST", "/api/flows/filter"), ("GET", "/api/admin/settings")):
            sent = {"Origin": origin, **door.known}
            answer = door.ask(method, path, {} if method == "POST" else None, **sent)
            assert answer.status == 403, (origin, path)
            assert "access-control-allow-origin" not in answer.headers


def test_pages_of_others_cannot_frame_its_own(served: Served, served_door: Door) -> None:
    for door in (served_door, Door(served.state.mlflow, served.root)):
        assert door.ask("GET", "/").headers["x-frame-options"] == "SAMEORIGIN"


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
FOCUS = """
document.querySelector("input[type=password]")?.focus();
document.activeElement?.type === "password"
"""
ATTACK = """
Promise.all(%s.map(([mode, type, path]) => fetch(%r + path, {
    mode, method: "POST", headers: {"Content-Type": type}, body: '{"name": "pwned"}',
}).then(answer => answer.type, error => "refused")))
"""


@needs_chromium
def test_prefects_page_asks_a_browser_for_the_password_and_then_works(
    served: Served, tmp_path: Path
) -> None:
    with browser(tmp_path / "profile") as page:
        page.open(f"{served.state.prefect}/deployments")
        until(lambda: page.value(FOCUS))
        assert not page.shows("full-pipeline")
        page.type(password(served.root))
        until(lambda: page.shows("full-pipeline"))
        page.open(f"{served.state.prefect}/runs")  # it is asked for once
        until(lambda: page.shows("Flow runs") or page.shows("Runs"))
        assert not page.value("document.querySelector('input[type=password]')")
        page.open(served.state.mlflow)
        until(lambda: page.shows("Experiments"))


@needs_chromium
def test_a_hostile_page_in_a_browser_reaches_nothing(
    served: Served, served_door: Door, tmp_path: Path
) -> None:
    address = served.state.prefect
    flows = json.dumps(
        [
            ["cors", "application/json", "/api/flows/"],
            ["cors", "text/plain", "/api/flows/"],
            ["no-cors", "text/plain", "/api/flows/"],
        ]
    )
    with misbehaving.Site() as hostile, browser(tmp_path / "profile") as page:
        hostile.pages["/"] = misbehaving.http(b"<p>hello", Content_Type="text/html")
        threading.Thread(target=hostile.serve_forever, daemon=True).start()
        page.open(f"http://{HOSTILE}:{hostile.port}/")
        until(lambda: page.shows("hello"))
        assert page.value(ATTACK % (flows, address)) == ["refused", "refused", "opaque"]
        named = address.replace(LOOPBACK, HOSTILE)
        page.open(f"{named}/api/health")
        until(lambda: page.shows("Invalid host header"))
        hostile.shutdown()
    found = served_door.ask("POST", "/api/flows/filter", {}, **served_door.known)
    assert "pwned" not in {flow["name"] for flow in json.loads(found.body)}


def test_its_own_pages_are_answered(served_door: Door) -> None:
    for origin in (served_door.address, served_door.address.replace(LOOPBACK, "localhost")):
        sent = {"Origin": origin, **served_door.known}
        answer = served_door.ask("POST", "/api/flows/filter", {}, **sent)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == origin


def test_beyond_loopback_there_is_tls_and_the_password(served_door: Door) -> None:
    address = served_door.address.replace("http://127.0.0.1", f"https://{BEYOND}")
    beyond = Door(
        address,
        served_door.root,
        ssl.create_default_context(cafile=served_door.root / "certificate.pem"),
    )
    assert beyond.ask("GET", "/api/health").status == 200
    assert beyond.ask("POST", "/api/flows/filter", {}).status == 401
    assert beyond.ask("POST", "/api/flows/filter", {}, Origin=FOREIGN, **beyond.known).status == 403
    assert beyond.ask("POST", "/api/flows/filter", {}, Origin=address, **beyond.known).status == 200
    plain = Door(address.replace("https", "http"), served_door.root)
    with pytest.raises((OSError, http.client.HTTPException)):
        plain.ask("GET", "/api/health")


def test_the_pages_of_the_reverse_proxy_are_answered(served: Served, served_door: Door) -> None:
    sent = {"Host": "images.example", "Origin": PROXY}
    assert served_door.ask("POST", "/api/flows/filter", {}, **sent).status == 401
    assert (
        served_door.ask("POST", "/api/flows/filter", {}, **sent, **served_door.known).status == 200
    )
    mlflow = Door(served.state.mlflow, served.root)
    search = "/api/2.0/mlflow/experiments/search"
    assert mlflow.ask("POST", search, {"max_results": 1}, **sent).status == 200


@pytest.mark.parametrize(
    "path", ["/api/health", "/api/ready", "/ui-settings", "/docs", "/openapi.json", "/"]
)
def test_another_host_name_is_refused(door: Door, path: str) -> None:
    """DNS rebinding: a name of the attacker's that leads to this machine."""
    for host in ("attacker.example", f"attacker.example:{urlsplit(door.address).port}"):
        assert door.ask("GET", path, Host=host, **door.known).status == 400


def test_nothing_is_done_without_the_password(door: Door) -> None:
    wrong = base64.b64encode(b"hdm:wrong").decode()
    for headers in ({}, {"Authorization": f"Basic {wrong}"}):
        for path in ("/api/deployments/filter", "/api/flow_runs/filter", "/api/flows/"):
            assert door.ask("POST", path, {"name": "mine"}, **headers).status == 401
    assert door.ask("POST", "/api/flows/filter", {}, **door.known).status == 200


@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out", "/api/logs/out"])
def test_websockets_want_an_own_page_and_the_password(door: Door, path: str) -> None:
    address = door.address.replace("http", "ws") + path

    async def reached(origin: str | None, token: str | None) -> bool:
        opened = websockets.connect(
            address,
            origin=origin,  # type: ignore[arg-type]
            subprotocols=["prefect"],  # type: ignore[list-item]
        )
        try:
            async with opened as socket:
                await socket.send(json.dumps({"type": "auth", "token": token}))
                let_in: bool = json.loads(await socket.recv())["type"] == "auth_success"
                return let_in
        except websockets.WebSocketException:
            return False

    secret = password(door.root)
    assert not asyncio.run(reached(FOREIGN, secret))
    assert not asyncio.run(reached(door.address, None))
    assert not asyncio.run(reached(None, "hdm:wrong"))
    assert asyncio.run(reached(door.address, secret))
    assert asyncio.run(reached(None, secret))


def test_only_this_user_can_read_the_password(door: Door) -> None:
    folder = door.root / ".services"
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
    assert len(password(door.root)) >= 32


def test_a_log_names_the_password_s_file(served: Served) -> None:
    assert str(served.root / ".services" / "password") in served.log


def test_whoever_starts_a_run_cannot_choose_its_command(served_door: Door, tmp_path: Path) -> None:
    filters = {"deployments": {"name": {"any_": ["full-pipeline"]}}}
    answer = served_door.ask("POST", "/api/deployments/filter", filters, **served_door.known)
    (deployment,) = json.loads(answer.body)
    start = f"/api/deployments/{deployment['id']}/create_flow_run"
    mark = tmp_path / "pwned"
    for variables in (
        {"command": f"touch {mark}"},
        {"env": {"PYTHONSTARTUP": "x"}},
        {"working_dir": "/"},
    ):
        body = {"job_variables": variables}
        assert served_door.ask("POST", start, body).status == 401
        assert served_door.ask("POST", start, body, **served_door.known).status == 422
    assert not mark.exists()


def test_the_password_is_in_no_command_line_and_no_log(door: Door) -> None:
    secret = password(door.root)
    half = secret.partition(":")[2]
    found = []
    for path in (*Path("/proc").glob("[0-9]*/cmdline"), *door.root.rglob("*.log")):
        with contextlib.suppress(OSError):  # a process that has ended
            if half.encode() in path.read_bytes():
                found.append(path)
    assert found == []


def test_a_deployment_is_run_by_its_bare_name(served: Served, served_door: Door) -> None:
    """The hook finds server and password; the run itself ends at once, since the pipeline does not
    exist.
    """
    words = ("deployment", "run", "full-pipeline", "-p", "pipeline=nothing", "--watch")
    done = served.command("prefect", *words)
    assert "full-pipeline/full-pipeline" in done.stdout, done.stderr
    answer = served_door.ask("POST", "/api/flow_runs/filter", {}, **served_door.known)
    (run,) = json.loads(answer.body)
    assert run["state_type"] == "FAILED"
    assert "no pipeline is called" in run["state"]["message"]


@pytest.mark.parametrize("own_port", [False, True])
def test_mlflow_answers_no_other_page_of_this_machine(served: Served, own_port: bool) -> None:
    door = Door(served.state.mlflow, served.root)
    port = urlsplit(served.state.mlflow).port
    origin = f"http://localhost:{port}" if own_port else "http://localhost:3000"
    search = "/api/2.0/mlflow/experiments/search"
    for method, path in (
        ("POST", search),
        ("POST", "/graphql"),
        ("GET", "/ajax-api/3.0/mlflow/server-info"),
    ):
        body = {"max_results": 1} if method == "POST" else None
        answer = door.ask(method, path, body, Origin=origin)
        assert (answer.status != 403) is own_port, path


def test_mlflow_tracks_runs_and_does_nothing_else(served: Served) -> None:
    """Its assistant runs a shell for whoever can reach the port, with a model of the asker's
    choice.
    """
    door = Door(served.state.mlflow, served.root)
    assistant = "/ajax-api/3.0/mlflow/assistant"
    config = {"providers": {"ollama": {"model": "m", "base_url": "http://127.0.0.1:9"}}}
    for method, path, body in (
        ("GET", f"{assistant}/config", None),
        ("PUT", f"{assistant}/config", config),
        ("POST", f"{assistant}/message", {"message": "hello"}),
        ("POST", "/gateway/mlflow/v1/chat/completions", {"model": "m", "messages": []}),
        ("POST", "/ajax-api/3.0/jobs/", {"job_name": "x", "params": {}}),
        ("GET", "/api/2.0/mlflow/webhooks", None),
        ("POST", "/v1/traces", {}),
    ):
        assert door.ask(method, path, body).status == 404, path
    for page in ("/", "/health", "/ajax-api/3.0/mlflow/server-info"):
        assert door.ask("GET", page).status == 200


def test_nobody_chooses_where_mlflow_writes(served: Served, tmp_path: Path) -> None:
    door = Door(served.state.mlflow, served.root)
    create = "/api/2.0/mlflow/experiments/create"
    for place in (str(tmp_path), tmp_path.as_uri()):
        body = {"name": place, "artifact_location": place}
        assert door.ask("POST", create, body).status == 400
    assert door.ask("POST", create, {"name": "of their own"}).status == 200


def test_mlflow_refuses_other_pages_and_paths_out_of_its_folder(served: Served) -> None:
    door = Door(served.state.mlflow, served.root)
    search = "/api/2.0/mlflow/experiments/search"
    assert door.ask("POST", search, {"max_results": 1}).status == 200
    assert door.ask("POST", search, {"max_results": 1}, Origin=FOREIGN).status == 403
    assert door.ask("POST", search, {"max_results": 1}, Host="attacker.example").status == 403
    outside = "/api/2.0/mlflow-artifacts/artifacts/%2e%2e/%2e%2e/password"
    assert door.ask("GET", outside).status == 400


def test_no_change_of_a_deployment_or_pool_lets_a_caller_choose_a_command(
    served: Served, served_door: Door, tmp_path: Path
) -> None:
    found = served_door.ask("POST", "/api/deployments/filter", {}, **served_door.known)
    deployment = next(one for one in json.loads(found.body) if one["name"] == "full-pipeline")
    mark = tmp_path / "pwned"
    variables = {"job_variables": {"command": f"touch {mark}"}}
    changes = (
        (f"/api/deployments/{deployment['id']}", variables),
        ("/api/work_pools/hdm", {"description": "mine"}),
        (f"/api/work_queues/{deployment['work_queue_id']}", {"description": "mine"}),
    )
    for path, body in changes:
        assert served_door.ask("PATCH", path, body).status == 401, path
        foreign = {"Origin": FOREIGN, **served_door.known}
        assert served_door.ask("PATCH", path, body, **foreign).status == 403, path
        assert served_door.ask("DELETE", path, **{"Origin": FOREIGN}).status == 403, path
    anew = {"name": "mine", "flow_id": deployment["flow_id"], "work_pool_name": "hdm", **variables}
    assert served_door.ask("POST", "/api/deployments/", anew, **served_door.known).status == 422
    # Prefect keeps what a PATCH with the password brings, and then refuses to run the deployment.
    path, body = changes[0]
    # While another writes to its database, it answers 503.
    until(lambda: served_door.ask("PATCH", path, body, **served_door.known).status == 204)
    done = served.command(
        "prefect", "deployment", "run", "full-pipeline", "-p", "pipeline=nothing", "--watch"
    )
    assert "'command' was unexpected" in done.stdout
    served_door.ask("PATCH", path, {"job_variables": {}}, **served_door.known)
    assert not mark.exists()


def test_a_run_is_tracked_through_what_mlflow_still_answers(served: Served) -> None:
    few = ("download.scenes.count=24", "download.shard_items=24", "download.timeout_sec=5")
    settings = [word for setting in few for word in ("--set", setting)]
    tracked = {**environment(served.root), "HDM_TRACKING": "on"}
    words = [HDM, "run", "demo", "--until", "download", *settings]
    done = subprocess.run(
        words, cwd=PROJECT, env=tracked, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "MLflow does not take" not in done.stderr

    def rows(question: str) -> list[tuple[Any, ...]]:
        path = served.root / ".services" / "mlflow.db"
        address = f"{path.as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            return database.execute(question).fetchall()

    runs = "SELECT e.name, r.status FROM runs r JOIN experiments e USING (experiment_id)"
    # On a busy machine it is written down in the background, after the run's end.
    until(lambda: ("demo", "FINISHED") in rows(runs))
    metrics = dict(rows("SELECT key, value FROM latest_metrics"))
    assert metrics["items"] >= 24
