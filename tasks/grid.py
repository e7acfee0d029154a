"""The grid that a flow's parameters name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hdm.errors import combined
from hdm.lab.grid import Grid, load_lab, plan_grid
from hdm.store import Store, store_root
from tasks.configuration import FILE_VARIABLE


def configured_grid(
    lab: str, only: Iterable[str] = (), seeds: int | None = None, overrides: Iterable[str] = ()
) -> Grid:
    """The lab's comparisons asked for, from the file that the environment's HDM_PIPELINES names,
    else the project's.
    """
    file = Path(named) if (named := os.environ.get(FILE_VARIABLE)) else None
    return plan_grid(load_lab(lab, file), only, seeds, overrides, file)


def preflight(grid: Grid) -> None:
    """Raise one error that lists everything in the cells' settings that would make them fail, if
    there is anything.
    """
    from hdm.stages import problems  # torch and the stages: seconds

    store = Store(store_root())
    cells = [cell for cell in grid.cells() if cell.seed == 0]  # the others differ in the seed alone
    error = combined(problem for cell in cells for problem in problems(grid.pipeline(cell), store))
    if error is not None:
        raise error
