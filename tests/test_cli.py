"""The command line: what it says, and its exit codes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from hdm import diagnosis
from hdm.store import Identity, Store
from tasks.services import Serving, alone, announce


def hdm(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path)
    with found.draft(Identity("download", 1, {})) as draft:
        draft.write_json("items.json", [1, 2], {"items": 2})
        draft.commit()
    return found


def test_help_needs_no_heavy_library() -> None:
    heavy = ["torch", "prefect", "mlflow", "transformers", "datasets"]
    found = f"' '.join(name for name in {heavy} if name in sys.modules)"
    code = f"import sys, flows.cli; sys.exit({found} or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pipelines_and_their_settings() -> None:
    assert "hdm-xut-base" in hdm("pipelines")[1]
    code, shown = hdm("config", "demo", "--set", "filter.min_side_px=77")
    assert code == 0
    assert "min_side_px: 77" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["config", "demoo"], "did you mean demo"),
        (["config", "demo", "--set", "filter.min_aesthetc=5"], "min_aesthetic"),
        (["run", "demo", "--from", "filtre"], "no stage 'filtre'"),
        (["run", "nothing"], "no pipeline is called"),
        (["lab", "--only", "residul"], "did you mean residual"),
        (["lab", "scene"], "did you mean scenes"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    words: list[str], said: str, tmp_path: Path
) -> None:
    code, shown = hdm(*words, *(["--store", str(tmp_path)] if words[0] == "run" else []))
    assert code == 2
    assert said in shown
    assert "Traceback" not in shown


def test_verify_names_a_damaged_file(store: Store) -> None:
    assert hdm("verify", "--store", str(store.root))[0] == 0
    path = next(store.outputs()).file("items.json")
    path.write_bytes(path.read_bytes().replace(b"1", b"7"))
    code, shown = hdm("verify", "--store", str(store.root))
    assert code == 5
    assert str(path) in shown.replace("\n", "")


def test_verify_names_all_that_is_damaged_and_changes_nothing(store: Store) -> None:
    for number in (1, 2):
        with store.draft(Identity("filter", number, {})) as draft:
            for name in "abc":
                draft.write_json(f"{name}.json", number)
            draft.commit()
    first, second = (store.folder(Identity("filter", number, {})) for number in (1, 2))
    (first / "a.json").write_text("8\n")
    (first / "c.json").unlink()
    (second / "b.json").unlink()
    (second / "b.json").mkdir()
    shutil.copytree(first, store.root / "filter" / ("0" * 16))
    before = sorted(store.root.rglob("*"))
    code, shown = hdm("verify", "--store", str(store.root))
    assert code == 5
    foreign = store.root / "filter" / ("0" * 16) / "manifest.json"
    for path in (first / "a.json", first / "c.json", second / "b.json", foreign):
        assert f"damaged    {path}" in shown
    assert "4 damaged files" in shown
    assert "whole      download" in shown
    assert sorted(store.root.rglob("*")) == before


def test_status_and_stop(store: Store) -> None:
    with alone(store.root):
        announce(store.root, Serving(1, "http://127.0.0.1:4200", "http://127.0.0.1:5000"))
        shown = hdm("status", "--store", str(store.root))[1]
    assert "http://127.0.0.1:5000" in shown
    assert "items 2" in shown
    code, shown = hdm("stop", "--store", str(store.root))
    assert (code, "nothing was running" in shown) == (0, True)
    with alone(store.root), subprocess.Popen(["sleep", "99"]) as services:
        announce(store.root, Serving(services.pid, "http://p", "http://m"))
        code, shown = hdm("stop", "--all", "--store", str(store.root))
        assert services.wait() == -signal.SIGTERM
    assert (code, "nothing was running" in shown) == (0, False)


def test_doctor_knows_the_pair_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert diagnosis.torch_pair().fine
    assert diagnosis.packages().fine
    (tmp_path / "torchvision.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    code = (
        "import json, dataclasses; from hdm.diagnosis import torch_pair; "
        "print(json.dumps(dataclasses.asdict(torch_pair())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert not found["fine"]
    assert "nms does not exist" in found["found"]
    assert "pip install" in found["do"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "demo", "--until", "download"],
        ["serve"],
        ["status"],
        ["stop"],
        ["verify"],
        ["doctor"],
        ["plan", "demo"],
        ["lab", "--list"],
    ],
    ids=lambda words: words[0],
)
def test_a_store_that_cannot_be_is_told_in_a_line(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in ("file", "file/below", "loop", "x" * 300):
        code, shown = hdm(*words, "--store", str(tmp_path / place))
        assert code == 2, shown
        assert "InputError" in shown
        assert "--store" in shown


@pytest.mark.parametrize("words", [["run", "demo", "--until", "download"], ["serve"]])
def test_a_store_that_cannot_be_made_is_told_in_a_line(words: list[str]) -> None:
    code, shown = hdm(*words, "--store", "/proc/store")  # not even root may
    assert code == 1
    assert "cannot write" in shown
    assert "Traceback" not in shown
