"""What processes of ours find in their environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hdm.child import FROM_TORCHRUN, child_environment, forget_launchers

OF_LAUNCHERS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "FSDP_VERSION": "2",
    "GROUP_RANK": "0",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "NODE_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMI_RANK": "1",
    "RANK": "1",
    "ROLE_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": "2",
}
OTHERS = {
    "CUDA_VISIBLE_DEVICES": "1",
    "HF_HOME": "/models",
    "HTTPS_PROXY": "http://127.0.0.1:8080",
    "NCCL_DEBUG": "INFO",
}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**OF_LAUNCHERS, **OTHERS}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("launched")
def test_children_inherit_all_but_the_variables_of_launchers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    code = "import json, os; print('\\n'.join(os.environ))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment({"ADDED": "1", "HF_HOME": "/not/this"}),
        capture_output=True,
        text=True,
        check=True,
    )
    names = set(done.stdout.splitlines())
    assert not names & OF_LAUNCHERS.keys()
    assert names >= {*OTHERS, "ADDED", "PATH"}
    (line,) = caplog.messages
    assert all(name in line for name in OF_LAUNCHERS)


@pytest.mark.usefixtures("launched")
def test_this_process_forgets_them_too_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    forget_launchers()
    forget_launchers()
    assert not os.environ.keys() & OF_LAUNCHERS.keys()
    assert os.environ["HF_HOME"] == "/models"
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("launched")
def test_a_rank_keeps_what_our_own_torchrun_told_it() -> None:
    forget_launchers(keep=FROM_TORCHRUN)
    assert os.environ["WORLD_SIZE"] == os.environ["LOCAL_WORLD_SIZE"] == "2"
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ


def test_a_command_names_what_it_ignores() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hdm.commands.cli", "pipelines"],
        env={**os.environ, **OF_LAUNCHERS, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ignored: variables of a launcher (ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in done.stderr
