"""A lab: short trainings of settings × seeds, and one table of their results."""

import logging
import time
from typing import Any

from prefect import Flow, flow

from hdm.errors import HdmError
from tasks.cell import CellRecord, cell_task
from tasks.configuration import Project
from tasks.grid import configured_grid, preflight
from tasks.lab import table_task
from tasks.records import settled
from tasks.run import running

logger = logging.getLogger("hdm.run")


def lab_flow(project: Project) -> Flow[..., list[CellRecord]]:
    """The flow that runs a lab of a project."""

    @flow(name="compare-settings", flow_run_name="lab {lab}", persist_result=True)
    @settled
    def compare_settings(
        lab: str = "scenes",
        only: list[str] = [],
        seeds: int | None = None,
        overrides: list[str] = [],
    ) -> list[CellRecord]:
        """Train every setting at every seed, one cell after the other, and write the table;
        finished cells are found.

        Args:
            lab: entry of `labs:` in pipelines.yaml.
            only: names of comparisons; none: all.
            seeds: trainings of every setting. None: as the lab says.
            overrides: settings of every cell as `stage.field=value`, the last wins.

        Raises:
            HdmError: cells failed. The others were trained all the same, and the table shows them.
        """
        # Every cell's settings are checked before the first cell trains, not hours later at its
        # turn.
        grid = configured_grid(project, lab, only, seeds, overrides)
        preflight(grid, project.store)
        cells = grid.cells()
        records: list[CellRecord] = []
        failed: dict[str, str] = {}
        began = time.monotonic()
        with running(project, grid.lab.pipeline, list(grid.common()), lab=f"lab-{lab}") as run:
            train_cell = cell_task(run, grid)
            for number, one in enumerate(cells, 1):
                # The state, not the result: a failed cell does not end the others. A cancelled one
                # does.
                state = train_cell(one.name, return_state=True)
                found = state.result(raise_on_failure=state.is_cancelled())
                if isinstance(found, CellRecord):
                    records.append(found)
                else:
                    failed[one.name] = str(found)
                    logger.warning("%s failed: %s", one.name, found)
                elapsed = time.monotonic() - began
                logger.info("%s", progress(number, len(cells), one.name, records, elapsed))
            # Also after failures: the table shows the cells that are finished.
            table_task(run, grid)()
        if failed:
            failures = "\n".join(f"{name}: {message}" for name, message in failed.items())
            raise HdmError(
                f"{len(failed)} of {len(cells)} cells failed\n{failures}",
                do="mend the cause, then the same command",
            )
        return records

    return compare_settings


# Made on access, not at import: nothing may read the environment when this module is imported.
def __getattr__(name: str) -> Any:
    """The flow, for a deployment of one's own; the environment says where it works.

    Raises:
        AttributeError: it is another name.
    """
    if name == "compare_settings":
        return lab_flow(Project.chosen())
    raise AttributeError(f"module {__name__} has no {name!r}")


def progress(
    number: int, total: int, name: str, records: list[CellRecord], elapsed_sec: float
) -> str:
    """One line: which cell is done, how long it took, and how long the others will take if they are
    like those trained until now.
    """
    # Cells found in the store took no time and say nothing about those to come.
    trained = [record for record in records if not record.cached]
    mine = next((record for record in records if record.name == name), None)
    took = "failed" if mine is None else "up to date" if mine.cached else f"{mine.seconds:.0f} s"
    left = (
        f"; about {(total - number) * elapsed_sec / len(trained) / 60:.0f} min left"
        if trained and number < total
        else ""
    )
    return f"cell {number} of {total}  {name}  {took}{left}"
