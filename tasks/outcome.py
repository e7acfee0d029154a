"""What a run returns to its caller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Outcome:
    """Results of a run besides its outputs, filled in as they become known.

    Args:
        report: its report page.
        mlflow_run: its id in MLflow.
    """

    report: Path | None = None
    mlflow_run: str | None = None
