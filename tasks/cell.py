"""One cell of a lab: a training and its evaluation, and whatever data it needs that is not
there.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from prefect import task

from hdm.store import Store, store_root
from tasks import reporter
from tasks.configuration import configured
from tasks.outputs import made_or_found
from tasks.records import settled

logger = logging.getLogger("hdm.run")


@dataclass(frozen=True)
class CellRecord:
    """A finished cell: `seconds` it took this time; `cached` where it was in the store already."""

    name: str
    seconds: float
    cached: bool


@task(name="cell", task_run_name="{name}", persist_result=False)
@settled
def cell(name: str, pipeline: str, overrides: list[str], params: dict[str, Any]) -> CellRecord:
    """One cell of a lab.

    Args:
        name: as `residual/published seed 1`.
        pipeline: entry of pipelines.yaml.
        overrides: `stage.field=value`, the last wins.
        params: what sets it apart from the others.
    """
    begun = time.monotonic()
    with reporter.cell(name, params):
        records = [
            made_or_found(output, pipeline, overrides) for output in _wanted(pipeline, overrides)
        ]
    return CellRecord(
        name, round(time.monotonic() - begun, 3), all(record.cached for record in records)
    )


def _wanted(pipeline: str, overrides: list[str]) -> list[str]:
    """Training and evaluation, and before them what is missing of the data if there is anything to
    do.
    """
    from hdm.stages import identities, steps  # torch and the stages: seconds

    settings, store = configured(pipeline, overrides), Store(store_root())
    known = identities(settings)
    there = {name for name, identity in known.items() if store.find(identity) is not None}
    own = [step.name for step in steps(settings) if step.stage in ("train", "evaluate")]
    return (
        own
        if there.issuperset(own)
        else [step.name for step in steps(settings) if step.name in own or step.name not in there]
    )
