"""How busy the machine is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hdm.models.cpu import WAITING_AWAKE, idle_share, training_environment

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc/stat")


BUSY = [sys.executable, "-c", "while True: pass"]
# The child that starts it ends, so that what it has started is nobody's.
APART = f"""\
import subprocess
quiet = subprocess.DEVNULL
print(subprocess.Popen({BUSY!r}, stdout=quiet, stderr=quiet).pid)
"""
CORES = os.cpu_count() or 1


def test_other_programs_are_seen_and_threads_then_sleep_while_they_wait() -> None:
    busy = []
    try:
        for _ in range(CORES):
            started = subprocess.run([sys.executable, "-c", APART], capture_output=True, check=True)
            busy.append(int(started.stdout))
        share = idle_share(0.5)
        assert share is not None
        assert share < 0.4
        assert not WAITING_AWAKE.keys() & training_environment().keys()
    finally:
        for pid in busy:
            os.kill(pid, signal.SIGKILL)


def test_ones_own_processes_are_about_to_wait_and_do_not_count() -> None:
    busy = [subprocess.Popen(BUSY) for _ in range(CORES)]
    try:
        share = idle_share(0.5)
        # Beside other tests they get half of the cores or more.
        assert share is not None
        assert share > 0.25
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_where_it_cannot_be_told_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for text in ("", "cpu a b", "cpu 0 0 0 0 0 0 0 0"):
        (tmp_path / "stat").write_text(text)
        monkeypatch.setattr("hdm.models.cpu.CPU_TIMES", tmp_path / "stat")
        assert idle_share(0) is None
