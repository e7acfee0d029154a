"""How busy the machine is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hdm.models.cpu import WAITING_AWAKE, idle_share, training_environment

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc/stat")


def test_busy_cores_are_seen_and_threads_then_sleep_while_they_wait() -> None:
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        share = idle_share(0.5)
        assert share is not None
        assert share < 0.4
        assert not WAITING_AWAKE.keys() & training_environment().keys()
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
