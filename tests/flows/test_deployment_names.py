"""Bare deployment names, and the server's address for the `prefect` command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from prefect.plugins import HookContext

from flows import deployment_names
from flows.deployment_names import complete, setup_environment
from tasks.services import Serving, alone, announce, password

PROJECT = Path(__file__).parents[2]
KNOWN = {"full-pipeline": ["full-pipeline", "nightly"], "train-model": ["train-model", "nightly"]}


@pytest.fixture
def server() -> Iterator[str]:
    """Answers the two requests as Prefect's server does."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            flows = [{"id": name, "name": name} for name in KNOWN]
            deployments = [
                {"flow_id": flow, "name": name} for flow, names in KNOWN.items() for name in names
            ]
            body = json.dumps(flows if self.path == "/api/flows/filter" else deployments).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answers) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/api"
        http.shutdown()


@pytest.mark.parametrize(
    ("typed", "run"),
    [
        (
            "prefect deployment run full-pipeline",
            "prefect deployment run full-pipeline/full-pipeline",
        ),
        (
            "/bin/prefect deployment run train-model --param a=b",
            "/bin/prefect deployment run train-model/train-model --param a=b",
        ),
        (
            "prefect deployment run full-pipeline/nightly",
            "prefect deployment run full-pipeline/nightly",
        ),
        ("prefect deployment run --id 12", "prefect deployment run --id 12"),
        ("prefect deployment run -p a=b nightly", "prefect deployment run -p a=b nightly"),
        ("prefect deployment inspect full-pipeline", "prefect deployment inspect full-pipeline"),
        ("hdm deployment run full-pipeline", "hdm deployment run full-pipeline"),
        ("prefect deployment run", "prefect deployment run"),
    ],
)
def test_a_bare_name_is_completed_where_it_is_unique(server: str, typed: str, run: str) -> None:
    words = typed.split()
    complete(words, server)
    assert words == run.split()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("full-pipelne", "did you mean full-pipeline?"),
        ("full-pipelne/full-pipelne", "did you mean full-pipeline?"),
        ("unheard-of", "there are: full-pipeline/full-pipeline, "),
        ("nightly", "several deployments are called nightly: full-pipeline/nightly, train-model/"),
    ],
)
def test_a_name_that_the_server_does_not_know_is_told(server: str, name: str, told: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(told)):
        complete(["prefect", "deployment", "run", name], server)


def test_a_server_that_does_not_answer_is_told() -> None:
    with pytest.raises(SystemExit, match=r"no Prefect server answers at .*hdm serve"):
        complete(["prefect", "deployment", "run", "full-pipeline"], "http://127.0.0.1:9/api")


@pytest.mark.parametrize("served_once", [True, False])
def test_the_command_ends_in_a_line_where_nothing_serves(tmp_path: Path, served_once: bool) -> None:
    if served_once:
        (tmp_path / "store" / ".services" / "runs").mkdir(parents=True)
    environment = {**os.environ, "HDM_STORE": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "deployment", "run", "full-pipeline"],
        cwd=tmp_path,  # not the project's folder
        env={**environment, "PREFECT_PLUGINS_ENABLED": "true", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert f"no hdm serve found for {tmp_path / 'store'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_address_of_a_living_serve_is_taken_unless_the_user_set_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def environment(url: str | None) -> dict[str, str]:
        result = setup_environment(ctx=HookContext("3", url, lambda name: None))  # type: ignore[arg-type,return-value]
        return dict(result.env) if result else {}

    monkeypatch.setenv("HDM_STORE", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert environment(None) == {}
    with alone(tmp_path):
        announce(tmp_path, Serving(1, "http://127.0.0.1:4200", "http://127.0.0.1:5000"))
        found = environment(None)
        assert found["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
        assert found["PREFECT_API_AUTH_STRING"] == password(tmp_path)
        found = environment("http://elsewhere/api")
        assert not {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING"} & found.keys()
    # Prefect would start a server by itself, which is no more open than ours.
    found = environment(None)
    assert found["PREFECT_SERVER_API_AUTH_STRING"] == found["PREFECT_API_AUTH_STRING"]
    assert "PREFECT_API_URL" not in found
    assert str(tmp_path) in found["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    # That server takes the password it is given: one of its own would shut out who started it.
    monkeypatch.setattr(
        "sys.argv", ["uvicorn", "--factory", "prefect.server.api.server:create_app"]
    )
    assert environment(None) == {}


def test_prefect_finds_the_hook() -> None:
    assert [entry.load() for entry in entry_points(group="prefect.plugins", name="hdm")] == [
        deployment_names
    ]
