"""One cell of a lab: a training and its evaluation, and whatever data it needs that is not
there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from prefect import Task, task

from hdm.lab.grid import Grid
from tasks.outputs import made_or_found
from tasks.records import settled
from tasks.run import Run


@dataclass(frozen=True)
class CellRecord:
    """A finished cell: `seconds` it took this time; `cached` where it was in the store already."""

    name: str
    seconds: float
    cached: bool


def cell_task(run: Run, grid: Grid) -> Task[[str], CellRecord]:
    """The task that trains a cell of a lab."""
    cells = {cell.name: cell for cell in grid.cells()}

    @task(name="cell", task_run_name="{name}", persist_result=False)
    @settled
    def train_cell(name: str) -> CellRecord:
        """One cell of a lab.

        Args:
            name: as `residual/published seed 1`.
        """
        begun = time.monotonic()
        cell = cells[name]
        part = run.of(grid.pipeline(cell))
        params = {**cell.own, "seed": cell.seed, "setting": cell.setting}
        with run.reporter.cell(name, params):
            records = [made_or_found(part, output) for output in _wanted(part)]
        cached = all(record.cached for record in records)
        return CellRecord(name, round(time.monotonic() - begun, 3), cached)

    return train_cell


def _wanted(run: Run) -> list[str]:
    """Training and evaluation, and before them what is missing of the data if there is anything to
    do.
    """
    from hdm.stages import identities, steps  # torch and the stages: seconds

    known = identities(run.settings)
    there = {name for name, identity in known.items() if run.store.find(identity) is not None}
    every = [step.name for step in steps(run.settings)]
    own = [name for name in every if name.split(".")[0] in ("train", "evaluate")]
    if there.issuperset(own):
        return own
    return [name for name in every if name in own or name not in there]
