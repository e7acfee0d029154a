"""Who is alive: locks that die with their process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tasks.services import Serving, alone, announce, prefect_environment, runs, serving, under_way

HOLD = """
import sys, pathlib
from tasks.services import *
root = pathlib.Path(sys.argv[1])
with alone(root), under_way(root, "demo"):
    announce(root, Serving(1, "http://p", "http://m", {"worker": 2}))
    print("ready", flush=True)
    sys.stdin.read()
"""


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
    assert list((tmp_path / ".services" / "runs").iterdir()) == []


def test_an_ended_serve_leaves_nothing(tmp_path: Path) -> None:
    with alone(tmp_path):
        announce(tmp_path, Serving(os.getpid(), "http://p", "http://m"))
        assert prefect_environment(tmp_path)["PREFECT_API_URL"] == "http://p/api"
    assert serving(tmp_path) is None
    assert "PREFECT_API_URL" not in prefect_environment(tmp_path)


def test_a_run_announces_itself_only_while_it_lasts(tmp_path: Path) -> None:
    with under_way(tmp_path, "demo"):
        assert [run["pid"] for run in runs(tmp_path)] == [os.getpid()]
    assert runs(tmp_path) == []
