"""How busy the machine is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hdm.models.cpu import WAITING_AWAKE, idle_share, mkl_takes_half_vectors, training_environment

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
        monkeypatch.setattr("hdm.models.cpu._STAT", tmp_path / "stat")
        assert idle_share(0) is None


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t\t: fpu avx2 avx512f avx512dq\n\nprocessor\t: 1\n",
            True,
        ),
        (
            "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: avx512f\n",
            False,
        ),  # Zen 4: its own units are 256 bits wide
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t\t: avx2\n", False),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nflags\t\t: avx512f\n", False),
        ("CPU implementer\t: 0x41\n", False),
        ("", False),
    ],
)
def test_cpus_of_which_mkl_uses_half(
    text: str, half: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hdm.models.cpu._CPUINFO", tmp_path / "cpuinfo")
    assert not mkl_takes_half_vectors()
    (tmp_path / "cpuinfo").write_text(text)
    assert mkl_takes_half_vectors() is half
