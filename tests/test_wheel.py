"""The package as a wheel, in a folder that has packages called flows, tasks and hdm of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SMALL = (
    "download.scenes.count=24",
    "download.shard_items=24",
    "download.timeout_sec=3",
    "threads=1",
)
HDM = "import sys; from flows.cli import app; sys.argv[0] = 'hdm'; app()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed, without the packages that it needs."""
    work = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work)]
    subprocess.run([*build, str(PROJECT)], check=True)
    (wheel,) = work.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--target", str(work / "site"), str(wheel)]
    subprocess.run(install, check=True)
    return work / "site"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder whose own packages must not be taken for ours."""
    for name in ("flows", "tasks", "hdm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    return tmp_path


def hdm(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment.pop("HDM_STORE", None)
    return subprocess.run(
        [sys.executable, "-P", "-c", HDM, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_demo_runs_from_an_empty_folder(installed, folder):
    settings = [word for setting in SMALL for word in ("--set", setting)]
    done = hdm(installed, folder, "run", "demo", "--until", "filter", *settings)
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "store" / "filter").glob("*/manifest.json"))) == 1


def test_a_new_folder_begins_with_a_pipeline_that_extends_the_packages(installed, folder):
    assert hdm(installed, folder, "init", "project").returncode == 0
    project = folder / "project"
    listed = hdm(installed, project, "pipelines").stdout
    assert "mine" in listed
    assert "demo" in listed
    shown = hdm(installed, project, "config", "mine", "--set", "filter.min_side_px=99")
    assert shown.returncode == 0, shown.stderr
    assert "min_side_px: 99" in shown.stdout
    written = (project / "pipelines.yaml").read_bytes()
    again = hdm(installed, project, "init")
    assert again.returncode == 2
    assert "pipelines.yaml" in again.stderr
    assert (project / "pipelines.yaml").read_bytes() == written
