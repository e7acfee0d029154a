"""Where temporary files have no room, commands say so before they begin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hdm.errors import DoesNotFitError
from hdm.files import check_temporary


def test_the_folder_and_what_it_needs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    check_temporary(1)
    with pytest.raises(DoesNotFitError, match=r"MB free, 10{15}\.0 MB needed") as caught:
        check_temporary(10**21)
    assert caught.value.where == tmp_path
    assert "TMPDIR" in (caught.value.do or "")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A file system of 1 MB that holds nothing more."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    return folder


@pytest.mark.parametrize("words", [["run", "demo", "--until", "filter"], ["serve"]], ids=str)
def test_run_and_serve_end_with_it(words: list[str], full: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    try:
        program = "from flows.cli import app; app()"
        command = [sys.executable, "-c", program, *words, "--store", str(store)]
        environment = {**os.environ, "TMPDIR": str(full)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
    finally:
        subprocess.run(["umount", str(full)], check=True)
    assert done.returncode == 3, done.stderr
    assert f"MB needed ({full})" in done.stderr
    assert "TMPDIR" in done.stderr
    assert not list(store.glob("download*"))
