"""The server that `hdm run` starts for itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.flows.served import TEMPORARY, environment


def test_runs_that_begin_at_once_in_a_new_store_all_have_one(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TEMPORARY],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    found = [process.communicate("") for process in processes]
    assert [process.returncode for process in processes] == [0] * 2, found
    assert len({address for address, _ in found}) == 2
