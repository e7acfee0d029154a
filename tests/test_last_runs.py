"""How far each pipeline's last run is, and which model is the newest: by what lies in the store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from hdm.errors import InputError
from hdm.last_runs import LastRun, last_runs, newest_model, progress, remember
from hdm.store import Identity, Output, Store


def made(root: Path, name: str, variant: int = 0) -> Output:
    with Store(root).draft(Identity(name, 1, {"variant": variant})) as draft:
        draft.write_json("made.json", {"name": name}, {"items": 3})
        return draft.commit()


def digest(name: str, variant: int = 0) -> str:
    return Identity(name, 1, {"variant": variant}).digest


def status(root: Path) -> str:
    result = CliRunner().invoke(app, ["status", "--store", str(root)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_newest_model_is_that_of_the_last_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished training"):
        newest_model(tmp_path)
    old, new = made(tmp_path, "train.64px", 1), made(tmp_path, "train.64px", 2)
    assert newest_model(tmp_path)[0] in (old.path, new.path)  # nothing says whose
    remember(tmp_path, LastRun("demo", 1.0, {"train.64px": new.digest}))
    remember(tmp_path, LastRun("folder", 2.0, {"train.64px": old.digest}, {"autoencoder": "/a"}))
    assert newest_model(tmp_path) == (old.path, {"autoencoder": "/a"})
    assert newest_model(tmp_path, "demo") == (new.path, {})
    with pytest.raises(InputError, match="did you mean demo"):
        newest_model(tmp_path, "dmo")


def test_a_run_under_way_falls_back_to_what_was_trained_before(tmp_path: Path) -> None:
    before = made(tmp_path, "train.64px", 1)
    phases = {"train.48px": digest("train.48px"), "train.64px": digest("train.64px", 2)}
    trained = f"train.64px/{before.digest}"
    remember(tmp_path, LastRun("demo", 1.0, phases, trained=trained))
    assert newest_model(tmp_path, "demo")[0] == before.path
    first = made(tmp_path, "train.48px")
    assert newest_model(tmp_path, "demo")[0] == first.path


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        '"demo"',
        "{}",
        '{"pipeline": "demo", "started": 1, "outputs": null}',
        '{"pipeline": "demo", "started": 1, "outputs": {"train.64px": 5}}',
        '{"pipeline": null, "started": "yesterday", "outputs": {}}',
    ],
)
def test_a_record_of_another_shape_is_no_record(tmp_path: Path, content: str) -> None:
    remember(tmp_path, LastRun("folder", 1.0, {"download": None}))
    (tmp_path / ".pipelines" / "demo.json").write_text(content)
    assert [run.pipeline for run in last_runs(tmp_path)] == ["folder"]
    assert "folder" in status(tmp_path)


def test_status_tells_what_is_finished_in_work_and_to_do(tmp_path: Path) -> None:
    names = ("download", "encode.48px", "encode.64px", "train.48px", "train.64px")
    outputs = {**{name: digest(name) for name in names}, "evaluate": None}
    remember(tmp_path, LastRun("demo", 1.0, outputs))
    for name in ("download", "encode.48px"):
        made(tmp_path, name)
    with Store(tmp_path).draft(Identity("train.48px", 1, {"variant": 0})):
        found = progress(tmp_path, LastRun("demo", 1.0, outputs))
        said = status(tmp_path)
    assert found["train.48px"] == "in work"
    for part in (
        "finished: download, encode.48px",
        "in work: train.48px",
        "to do: encode.64px, train.64px, evaluate",
        "items 3",
    ):
        assert part in said
    assert "begun: train.48px" in status(tmp_path)


def test_status_tells_how_large_and_how_old_outputs_are(tmp_path: Path) -> None:
    for name, size, hours in (("download", 3_000_000, 50), ("filter", 20_000, 3)):
        with Store(tmp_path).draft(Identity(name, 1, {})) as draft:
            draft.write_json("made.json", "x" * size)
            manifest = draft.commit().path / "manifest.json"
        then = time.time() - hours * 3600
        os.utime(manifest, (then, then))
    lines = {line.split()[0]: line for line in status(tmp_path).splitlines() if line.strip()}
    assert re.search(r"3\.0 MB +2 d ago", lines["download"])
    assert re.search(r"20\.0 kB +3 h ago", lines["filter"])


def test_a_record_that_cannot_be_read_is_no_obstacle(tmp_path: Path) -> None:
    remember(tmp_path, LastRun("demo", 1.0, {}))
    (tmp_path / ".pipelines" / "other.json").write_text('{"pipeline": ')
    assert "pipeline  demo" in status(tmp_path)


def test_status_and_version_need_no_heavy_library(tmp_path: Path) -> None:
    remember(tmp_path, LastRun("demo", 1.0, {}))
    for words in (["status", "--store", str(tmp_path)], ["--version"]):
        code = f"import sys; from flows.cli import app; app({words}, standalone_mode=False)"
        heavy = "; sys.exit(' '.join({'torch', 'prefect', 'mlflow'} & sys.modules.keys()) or None)"
        done = subprocess.run(
            [sys.executable, "-c", code + heavy], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_version_names_the_commit_of_a_checkout(tmp_path: Path) -> None:
    from hdm.provenance import code_version

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    plain = code_version(tmp_path)
    assert "git" not in plain
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "One")
    commit = git("rev-parse", "HEAD")[:12]
    assert code_version(tmp_path) == f"{plain} (git {commit})"
    (tmp_path / "file").write_text("two")
    assert code_version(tmp_path) == f"{plain} (git {commit}, changed)"
    assert CliRunner().invoke(app, ["--version"]).output.startswith("hdm ")


def test_runs_with_hdm_state_are_remembered_there_beside_the_owner_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = tmp_path / "store", tmp_path / "other"
    remember(store, LastRun("demo", 1.0, {}))
    remember(store, LastRun("folder", 2.0, {}))
    monkeypatch.setenv("HDM_STATE", str(tmp_path / "mine"))
    remember(store, LastRun("demo", 3.0, {}))
    assert [(run.pipeline, run.started) for run in last_runs(store)] == [
        ("demo", 3.0),
        ("folder", 2.0),
    ]
    assert last_runs(other) == []
    monkeypatch.delenv("HDM_STATE")
    assert [run.started for run in last_runs(store)] == [2.0, 1.0]
