"""What a run hands back to whoever started it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Outcome:
    """What a run leaves beside its outputs; filled in when it is known.

    Args:
        report: the page about it.
        mlflow_run: MLflow's id of it.
    """

    report: Path | None = None
    mlflow_run: str | None = None
