"""The grid that a flow's parameters name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hdm.lab.grid import Grid, load_lab, plan_grid
from tasks.configuration import FILE_VARIABLE


def configured_grid(
    lab: str, only: Iterable[str] = (), seeds: int | None = None, overrides: Iterable[str] = ()
) -> Grid:
    """The lab's comparisons asked for, from the file that the environment's HDM_PIPELINES names, else the project's."""
    file = Path(named) if (named := os.environ.get(FILE_VARIABLE)) else None
    return plan_grid(load_lab(lab, file), only, seeds, overrides, file)
