"""Finish a lab after its cells: measure the costs of its settings, write its table and curves."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import Task, task

from hdm.errors import HdmError
from hdm.lab.grid import Grid
from tasks.run import Run

logger = logging.getLogger("hdm.run")


def table_task(run: Run, grid: Grid) -> Task[[], str]:
    """The task that writes a lab's table."""

    @task(name="lab-table", task_run_name=f"table of {grid.lab.name}", persist_result=False)
    def lab_table() -> str:
        """Time the steps of each setting unless that was done before, and write the table.

        Returns:
            its path.
        """
        return str(_write_table(run, grid))

    return lab_table


def _write_table(run: Run, grid: Grid) -> Path:
    from hdm.lab.lab_folder import COSTS, FIGURE, TABLE, CostBook, lab_folder, write_lab

    folder: Path = lab_folder(run.store, grid.lab.name)
    book = CostBook(folder / COSTS, grid)
    for comparison in book.missing():
        logger.info("timing steps: %s", comparison)
        try:
            book.measure(comparison, run.store)
        except HdmError as error:
            # Most likely of a cell that failed. The rest of the table does not need it.
            logger.warning("%s has no times: %s", comparison, error)
    write_lab(grid, run.store)
    for name in (TABLE, FIGURE):
        run.reporter.artifact(folder / name)
    return folder / TABLE
