"""Processes that `hdm serve` starts, and that it is alone on its store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.command_serve import serve_pages
from flows.processes import free_port, running
from hdm.errors import LockedError
from tasks.services import alone

FAMILY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
print("up", flush=True)
time.sleep(99)
"""


def living(group: int) -> int:
    """How many processes of that group live."""
    found = subprocess.run(
        ["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    return sum(line.split()[0] == str(group) and "Z" not in line for line in found.splitlines())


def test_a_process_and_its_children_are_gone_at_the_end(tmp_path: Path) -> None:
    with running(
        "family", [sys.executable, "-c", FAMILY], os.environ, tmp_path, tmp_path
    ) as process:
        log = tmp_path / ".services" / "family.log"
        while "up" not in log.read_text():
            time.sleep(0.05)
        assert living(process.pid) == 2
    while living(process.pid):
        time.sleep(0.05)


def test_a_port_in_use_is_left_alone() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) not in (port, 0)


def test_one_store_is_served_once(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(LockedError, match=str(os.getpid())):
        serve_pages(tmp_path, None, 0, 0)
