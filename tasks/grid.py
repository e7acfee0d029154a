"""The grid that a flow's parameters name."""

from __future__ import annotations

from collections.abc import Iterable

from hdm.errors import combined
from hdm.lab.grid import Grid, load_lab, plan_grid
from hdm.store import Store
from tasks.configuration import Project


def configured_grid(
    project: Project,
    lab: str,
    only: Iterable[str] = (),
    seeds: int | None = None,
    overrides: Iterable[str] = (),
) -> Grid:
    """The lab's comparisons asked for, from the project's pipelines."""
    return plan_grid(load_lab(lab, project.file), only, seeds, overrides, project.file)


def preflight(grid: Grid, store: Store) -> None:
    """Raise one error that lists all problems of the cells' settings, if there are any."""
    from hdm.stages import problems  # torch and the stages: seconds

    # The other cells differ only in the seed.
    cells = [cell for cell in grid.cells() if cell.seed == 0]
    error = combined(problem for cell in cells for problem in problems(grid.pipeline(cell), store))
    if error is not None:
        raise error
