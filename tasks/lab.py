"""What a lab is after its cells: the costs of its settings, its table and curves."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import task

from hdm.errors import HdmError
from hdm.store import Store, store_root
from tasks import reporter
from tasks.grid import configured_grid

logger = logging.getLogger("hdm.run")


@task(name="lab-table", task_run_name="table of {lab}", persist_result=False)
def lab_table(lab: str, only: list[str], seeds: int | None, overrides: list[str]) -> str:
    """Time the steps of each setting, where that was not done before, and write the table.

    Returns:
        its path.
    """
    from hdm.lab.lab_folder import COSTS, FIGURE, TABLE, CostBook, lab_folder, write_lab

    grid, store = configured_grid(lab, only, seeds, overrides), Store(store_root())
    folder: Path = lab_folder(store, lab)
    book = CostBook(folder / COSTS, grid)
    for comparison in book.missing():
        logger.info("timing steps: %s", comparison)
        try:
            book.measure(comparison, store)
        except (
            HdmError
        ) as error:  # of a cell that failed, most likely; the rest of the table needs nothing of it
            logger.warning("%s has no times: %s", comparison, error)
    write_lab(grid, store)
    for name in (TABLE, FIGURE):
        reporter.artifact(folder / name)
    return str(folder / TABLE)
