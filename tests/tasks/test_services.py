"""Who is alive: locks that die with their process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from tasks.services import (
    Serving,
    alone,
    announce,
    dead_runs,
    forget,
    password,
    prefect_access,
    prefect_environment,
    runs,
    serving,
    under_way,
)
from tasks.tracking import Mirror, database

ODD_NAMES = ["st?x", "100%25 store", "a#b", "two words", "Тест é", "semi;colon'@:x"]

HOLD = """
import sys, pathlib
from tasks.services import *
root = pathlib.Path(sys.argv[1])
with alone(root), under_way(root, "demo"):
    announce(root, Serving(1, "http://p", "http://m", {"worker": 2}))
    print("ready", flush=True)
    sys.stdin.read()
"""


SHAPES = ["[]", "null", "5", '"x"', "{}", "{", '{"pid": null, "prefect": 1, "mlflow": 2}']


@pytest.mark.parametrize("content", SHAPES)
def test_a_record_of_another_shape_is_no_record(tmp_path: Path, content: str) -> None:
    with alone(tmp_path), under_way(tmp_path, "demo"):
        folder = tmp_path / ".services"
        for name in ("serve.json", f"runs/{os.getpid()}.json"):
            (folder / name).write_text(content)
        assert serving(tmp_path) is None
        assert runs(tmp_path) == []
    assert dead_runs(tmp_path) == {}


def test_a_killed_serve_and_a_killed_run_are_seen_as_gone(tmp_path: Path) -> None:
    assert serving(tmp_path) is None
    assert runs(tmp_path) == []
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        assert serving(tmp_path) == Serving(1, "http://p", "http://m", {"worker": 2})
        assert [(run["pid"], run["pipeline"]) for run in runs(tmp_path)] == [(other.pid, "demo")]
        other.kill()
        other.wait()
    assert (tmp_path / ".services" / "serve.json").exists()  # what it left behind says nothing
    assert serving(tmp_path) is None
    assert runs(tmp_path) == []
    (record,) = dead_runs(tmp_path)  # for `hdm serve` to tell Prefect
    assert dead_runs(tmp_path)[record]["pipeline"] == "demo"
    forget(record)
    assert list((tmp_path / ".services" / "runs").iterdir()) == []


def test_a_killed_serve_s_addresses_are_forgotten_when_the_next_one_starts(tmp_path: Path) -> None:
    with alone(tmp_path):
        announce(tmp_path, Serving(os.getpid(), "http://p", "http://m"))
        left = (tmp_path / ".services" / "serve.json").read_bytes()
    (tmp_path / ".services" / "serve.json").write_bytes(left)
    with alone(tmp_path):
        assert serving(tmp_path) is None


def test_the_record_of_a_run_that_could_not_be_told_of_is_kept(tmp_path: Path) -> None:
    def run() -> None:
        with under_way(tmp_path, "a run"), under_way(tmp_path, "demo", "an-id"):
            assert [one["flow_run"] for one in runs(tmp_path)] == ["an-id"]
            raise ConnectionError

    with pytest.raises(ConnectionError):
        run()
    assert runs(tmp_path) == []
    assert [one["flow_run"] for one in dead_runs(tmp_path).values()] == ["an-id"]


def test_an_ended_serve_leaves_nothing(tmp_path: Path) -> None:
    with alone(tmp_path):
        announce(tmp_path, Serving(os.getpid(), "http://p", "http://m"))
        assert prefect_access(tmp_path, None)["PREFECT_API_URL"] == "http://p/api"
    assert serving(tmp_path) is None
    assert prefect_access(tmp_path, None) == {}


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        (None, True),
        ("http://127.0.0.1:4200/api", True),
        ("http://localhost:4200/api", True),
        ("http://127.0.0.1:4201/api", False),
        ("http://127.0.0.1.attacker.example:4200/api", False),
        ("http://box:4200/api", False),
        ("https://api.prefect.cloud/api/accounts/1", False),
    ],
)
def test_the_password_is_for_this_store_s_server_alone(
    tmp_path: Path, url: str | None, ours: bool
) -> None:
    with alone(tmp_path):
        announce(tmp_path, Serving(os.getpid(), "http://127.0.0.1:4200", "http://127.0.0.1:5000"))
        found = prefect_access(tmp_path, url)
        assert found.get("PREFECT_API_AUTH_STRING") == (password(tmp_path) if ours else None)
    assert prefect_access(tmp_path, url) == {}


def test_the_password_is_made_once_and_its_folder_closed(tmp_path: Path) -> None:
    (tmp_path / ".services").mkdir(mode=0o755)  # as an earlier version left it
    first = password(tmp_path)
    assert password(tmp_path) == first
    assert (tmp_path / ".services").stat().st_mode & 0o077 == 0
    assert (tmp_path / ".services" / "password").stat().st_mode & 0o077 == 0
    assert prefect_environment(tmp_path)["PREFECT_SERVER_API_AUTH_STRING"] == first


PASSWORD = """
import sys, time
from pathlib import Path
from tasks.services import password
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
for number in range(100):
    print(password(Path(sys.argv[1], str(number))))
"""


def test_commands_that_begin_at_once_have_the_same_password(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PASSWORD, str(tmp_path), str(time.time() + 3)]
    processes = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    found = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, found
    assert len({said for said, _ in found}) == 1


def test_a_password_whose_making_was_killed_is_made(tmp_path: Path) -> None:
    (tmp_path / ".services").mkdir()
    (tmp_path / ".services" / "password").touch(0o600)
    assert password(tmp_path) == password(tmp_path) != ""


def test_a_run_announces_itself_only_while_it_lasts(tmp_path: Path) -> None:
    with under_way(tmp_path, "demo"):
        assert [run["pid"] for run in runs(tmp_path)] == [os.getpid()]
    assert runs(tmp_path) == []


@pytest.mark.parametrize("name", ODD_NAMES)
def test_databases_lie_in_their_store_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    folder = root / ".services"
    address = prefect_environment(root)["PREFECT_SERVER_DATABASE_CONNECTION_URL"]

    async def write() -> None:
        engine = create_async_engine(address)
        async with engine.begin() as connection:
            await connection.execute(text("create table mine (x)"))
        await engine.dispose()

    asyncio.run(write())
    with create_engine(database(root)).begin() as connection:
        connection.execute(text("create table mine (x)"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in folder.glob("*.db")} == {"prefect.db", "mlflow.db"}


def test_mlflow_keeps_to_a_store_with_an_odd_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "st?x 100%25#é"
    mirror = Mirror(root)
    run = {"event": "run", "at": 1.0, "pipeline": "demo", "recipe": "r" * 16, "overrides": []}
    mirror.handle({**run, "pid": 1, "flow_run": "f", "params": {}})
    page = tmp_path / "report.html"
    page.write_text("hello")
    mirror.handle({"event": "artifact", "path": str(page)})
    page.unlink()
    assert [path.name for path in tmp_path.iterdir()] == [root.name]
    assert len(list((root / ".services" / "mlartifacts" / "demo").rglob("report.html"))) == 1
