"""What a run says at its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flows.commands.run import tell
from tasks.services import Serving, alone, announce

ADDRESS = "http://127.0.0.1:5123"


def summary(store: Path) -> dict[str, Any]:
    nothing: dict[str, Any] = {"scores": {}, "measured": {}, "report": None, "pictures": {}}
    return {**nothing, "pipeline": "demo", "store": str(store), "mlflow_run_id": "0"}


def test_where_mlflow_is_while_serve_lives_and_how_to_start_it_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(summary(tmp_path))
    assert "hdm serve, then" in capsys.readouterr().err
    with alone(tmp_path):
        announce(tmp_path, Serving(os.getpid(), "http://127.0.0.1:4200", ADDRESS))
        tell(summary(tmp_path))
        said = capsys.readouterr().err
    assert ADDRESS in said
    assert "hdm serve" not in said
