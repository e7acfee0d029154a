"""What is said of code, libraries and machine, against what git and the machine say themselves."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from hdm.provenance import LIBRARIES, checkout, provenance


def git(folder, *words):
    given = ["-c", "user.name=A", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", *given, "-C", str(folder), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_checkout_names_its_commit_and_whether_its_code_was_changed(tmp_path, monkeypatch):
    assert checkout(tmp_path) == {}
    git(tmp_path, "init", "-q")
    assert checkout(tmp_path) == {}, "no commit yet"
    (tmp_path / "hdm").mkdir()
    code = tmp_path / "hdm" / "code.py"
    code.write_text("1")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    clean = {"commit": git(tmp_path, "rev-parse", "HEAD"), "changed": False}
    assert checkout(tmp_path) == clean
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "output").write_text("no code")
    monkeypatch.setenv("GIT_DIR", "/somewhere/else")
    assert checkout(tmp_path) == clean
    monkeypatch.delenv("GIT_DIR")
    code.write_text("2")
    assert checkout(tmp_path) == {**clean, "changed": True}
    git(tmp_path, "checkout", "-q", "hdm/code.py")
    (tmp_path / "hdm" / "new.py").write_text("3")
    assert checkout(tmp_path) == {**clean, "changed": True}
    assert checkout(tmp_path / "hdm") == {}, "a folder within somebody's checkout"


def test_libraries_and_machine():
    found = provenance()
    assert set(found["libraries"]) == {"python", *LIBRARIES}
    assert found["libraries"]["Pillow"] == importlib.metadata.version("Pillow")
    assert found["libraries"]["python"] == platform.python_version()
    machine = found["machine"]
    assert machine["cores"] == len(os.sched_getaffinity(0))
    total = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    assert abs(machine["memory_bytes"] / total - 1) < 0.01
    assert machine["cpu"]


def test_it_costs_no_heavy_import():
    code = (
        "import sys; from hdm.provenance import provenance; "
        "provenance(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
