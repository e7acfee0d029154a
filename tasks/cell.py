"""One cell of a lab: a training, its evaluation, and any data that is still missing for them."""

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
    """A finished cell: `seconds` of this run; `cached` if it was in the store already."""

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
            name: for example `residual/published seed 1`.
        """
        begun = time.monotonic()
        cell = cells[name]
        part = run.of(grid.pipeline(cell))
        params = {**cell.own, "seed": cell.seed, "setting": cell.setting}
        with run.reporter.cell(name, params):
            # One task for the whole cell: a failure in any output is this cell's failure.
            records = [made_or_found(part, output) for output in _outputs_to_make(part)]
        cached = all(record.cached for record in records)
        return CellRecord(name, round(time.monotonic() - begun, 3), cached)

    return train_cell


def _outputs_to_make(run: Run) -> list[str]:
    """Training and evaluation, after missing data unless both are finished."""
    from hdm.stages import OutputGraph  # torch and the stages: seconds

    graph = OutputGraph(run.settings)
    own = []
    with_missing_data = []
    is_finished = True
    for step in graph.steps:
        is_there = run.store.find(graph.identity(step.name)) is not None
        is_own = step.stage in ("train", "evaluate")
        if is_own:
            own.append(step.name)
            is_finished = is_finished and is_there
        if is_own or not is_there:
            with_missing_data.append(step.name)
    # A finished cell needs no data.
    return own if is_finished else with_missing_data
