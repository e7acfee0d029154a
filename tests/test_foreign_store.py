"""A store of somebody else's, readable and not writable: what reads works, and what writes says
so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hdm.pipelines import load_pipeline
from hdm.stages import run
from hdm.store import Identity, Store
from tests.flows.served import with_tables

NOBODY = 65534
CAPABILITIES = "-dac_override,-dac_read_search,-fowner,-chown"
WHICH = Identity("filter", 1, {})
SMALL = ["download.scenes.count=6", "download.scenes.faults=0", "download.timeout_sec=3"]
SCRIPT = """
import json, os, sys
from pathlib import Path
from typer.testing import CliRunner
from flows.cli import app
from hdm.errors import HdmError
from hdm.pipelines import load_pipeline
from hdm.stages import run
from hdm.store import Identity, Store
from tasks.services import services

finished = load_pipeline("demo", json.loads(sys.argv[1]), None, {})
which = Identity("filter", 1, {})

def look(root, state):
    store, said = Store(root), {}

    def tried(name, do):
        try:
            said[name] = do()
        except HdmError as error:
            said[name] = f"{type(error).__name__}: {error}"

    def hdm(*words):
        result = CliRunner().invoke(app, [*words, "--store", str(root)])
        return [result.exit_code, result.output]

    def draft():
        with store.draft(Identity("other", 1, {})):
            pass

    os.environ.pop("HDM_STATE", None)
    tried("find", lambda: str(store.find(which).path))
    tried("status", lambda: hdm("status"))
    tried("verify", lambda: hdm("verify"))
    tried("stop", lambda: hdm("stop"))
    tried("draft", draft)
    tried("run", lambda: [made.cached for made in run(finished, store, stop_after="download")])
    tried("services", lambda: str(services(root)))
    os.environ["HDM_STATE"] = state
    tried("services elsewhere", lambda: str(services(root)))
    return said

for line in sys.stdin:
    root, state = json.loads(line)
    print(json.dumps(look(Path(root), state)), flush=True)
"""
"""Looks at the stores that it is asked about, a line each."""


def without_rights() -> list[str]:
    """What to put before a command so that permissions count for it."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root without setpriv: permissions do not count")
    return [setpriv, f"--bounding-set={CAPABILITIES}", f"--inh-caps={CAPABILITIES}"]


Look = Callable[[Path, Path], dict[str, Any]]


@pytest.fixture(scope="module")
def look() -> Iterator[Look]:
    """What a process without rights, the same for all tests, finds in a store of another's."""
    with subprocess.Popen(
        [*without_rights(), sys.executable, "-c", SCRIPT, json.dumps(SMALL)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as stranger:
        assert stranger.stdin
        assert stranger.stdout
        asked, answers = stranger.stdin, stranger.stdout

        def at(root: Path, state: Path) -> dict[str, Any]:
            print(json.dumps([str(root), str(state)]), file=asked, flush=True)
            answer = next(line for line in answers if line.startswith("{"))
            found: dict[str, Any] = json.loads(answer)
            return found

        yield at


def give_away(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = Store(tmp_path / "store")
    with store.draft(WHICH) as draft:
        draft.write_json("scores.json", [1, 2, 3], {"kept": 3})
        draft.commit()
    services = tmp_path / "store" / ".services" / "runs"
    services.mkdir(parents=True)
    for name in ("1.json", "1.lock", "../serve.lock"):
        (services / name).write_text("{}")
    return store.root


def test_reading_needs_no_permission_to_write(look: Look, root: Path, tmp_path: Path) -> None:
    folder = Store(root).folder(WHICH)
    (folder / ".scratch").mkdir()  # what a killed run of the owner left
    list(run(load_pipeline("demo", SMALL, None, {}), Store(root), stop_after="download"))
    give_away(root)
    said = look(root, tmp_path / "mine")
    assert said["find"] == str(folder)
    assert said["run"] == [True]
    assert said["status"][0] == said["verify"][0] == 0
    assert "kept 3" in said["status"][1]
    assert "whole" in said["verify"][1]
    assert "Permission denied" in said["draft"]
    assert said["stop"][0] == 0  # its runs can be seen
    assert "HDM_STATE=FOLDER" in said["services"]
    assert said["services elsewhere"] == str(tmp_path / "mine" / ".services")
    assert (folder / ".scratch").exists()


def test_runs_that_may_not_be_seen_are_not_said_to_be_none(
    look: Look, root: Path, tmp_path: Path
) -> None:
    give_away(root)
    (root / ".services").chmod(0)
    said = look(root, tmp_path / "mine")
    assert "running   unknown" in said["status"][1]
    assert said["stop"][0] == 1
    assert "belong to another user" in said["stop"][1]


def test_a_finished_pipeline_is_run_with_a_state_of_one_s_own(
    tmp_path: Path, prefect_tables: Path
) -> None:
    with_tables(tmp_path / "mine", prefect_tables)
    settings = ["download.scenes.count=12", "download.scenes.faults=0"]
    store = tmp_path / "store"
    list(run(load_pipeline("demo", settings), Store(store), None, "download"))
    give_away(store)
    words = [word for setting in settings for word in ("--set", setting)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "HDM_STATE": str(tmp_path / "mine"),
        "HDM_STORE": str(store),
        "HDM_TRACKING": "off",
    }

    def hdm(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*without_rights(), str(Path(sys.executable).with_name("hdm")), *words]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )

    done = hdm("run", "demo", "--until", "download", *words)
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stderr
    assert "pipeline  demo" in hdm("status").stdout
    assert (tmp_path / "mine" / "reports" / "index.html").exists()
    assert {path.name for path in store.iterdir()} == {"download"}


def test_damage_there_is_named_and_stays(look: Look, root: Path, tmp_path: Path) -> None:
    path = Store(root).folder(WHICH) / "scores.json"
    path.write_text(path.read_text().replace("2", "4"))
    give_away(root)
    said = look(root, tmp_path / "mine")
    assert said["find"].startswith("HdmError: cannot write: Permission denied")
    assert said["verify"][0] == 5
    assert path.exists()


def test_what_may_not_even_be_read_is_named(look: Look, root: Path, tmp_path: Path) -> None:
    path = Store(root).folder(WHICH) / "scores.json"
    give_away(root)
    path.chmod(0)
    said = look(root, tmp_path / "mine")
    assert said["find"].startswith("InputError: cannot read: Permission denied")
    assert "chmod" in said["find"]
    assert said["verify"][0] == 2
    assert f"unreadable {path}" in said["verify"][1]


def test_a_file_system_that_may_only_be_read(look: Look, root: Path, tmp_path: Path) -> None:
    """A tmpfs, mounted again without writing."""
    place = tmp_path / "mounted"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs a mount")
    try:
        shutil.copytree(root, place / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        said = look(place / "store", tmp_path / "mine")
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert said["status"][0] == said["verify"][0] == 0
    assert "Read-only file system" in said["draft"]
    assert "HDM_STATE=FOLDER" in said["services"]
