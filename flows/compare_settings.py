"""A lab: short trainings, settings × seeds, and one table of what they came to."""

import logging
import time

from prefect import flow

from hdm.errors import HdmError
from tasks import reporter
from tasks.cell import CellRecord, cell
from tasks.grid import configured_grid, preflight
from tasks.lab import lab_table
from tasks.records import settled

logger = logging.getLogger("hdm.run")


@flow(name="compare-settings", flow_run_name="lab {lab}", persist_result=True)
@settled
def compare_settings(
    lab: str = "scenes", only: list[str] = [], seeds: int | None = None, overrides: list[str] = []
) -> list[CellRecord]:  # fmt: skip
    """Train every setting at every seed, one cell after the other, and write the table; finished
    cells are found.

    Args:
        lab: entry of `labs:` in pipelines.yaml.
        only: names of comparisons; none: all.
        seeds: trainings of every setting. None: as the lab says.
        overrides: settings of every cell as `stage.field=value`, the last wins.

    Raises:
        HdmError: cells failed; the others were trained nevertheless, and the table tells of them.
    """
    grid = configured_grid(lab, only, seeds, overrides)
    preflight(grid)
    cells, records, failed, began = (
        grid.cells(),
        list[CellRecord](),
        dict[str, str](),
        time.monotonic(),
    )
    with reporter.run(grid.lab.pipeline, list(grid.common()), lab=f"lab-{lab}"):
        for number, one in enumerate(cells, 1):
            params = {**one.own, "seed": one.seed, "setting": one.setting}
            state = cell(
                one.name, grid.lab.pipeline, list(one.overrides), params, return_state=True
            )
            found = state.result(raise_on_failure=state.is_cancelled())
            if isinstance(found, CellRecord):
                records.append(found)
            else:
                failed[one.name] = str(found)
                logger.warning("%s failed: %s", one.name, found)
            logger.info(
                "%s", progress(number, len(cells), one.name, records, time.monotonic() - began)
            )
        lab_table(lab, only, seeds, overrides)
    if failed:
        told = "\n".join(f"{name}: {message}" for name, message in failed.items())
        raise HdmError(
            f"{len(failed)} of {len(cells)} cells failed\n{told}",
            do="mend the cause, then the same command",
        )
    return records


def progress(
    number: int, total: int, name: str, records: list[CellRecord], elapsed_sec: float
) -> str:
    """One line: which cell is done, how long it took, and how long the others will take if they are
    like those trained until now.
    """
    trained = [record for record in records if not record.cached]
    mine = next((record for record in records if record.name == name), None)
    took = "failed" if mine is None else "up to date" if mine.cached else f"{mine.seconds:.0f} s"
    left = (
        f"; about {(total - number) * elapsed_sec / len(trained) / 60:.0f} min left"
        if trained and number < total
        else ""
    )
    return f"cell {number} of {total}  {name}  {took}{left}"
