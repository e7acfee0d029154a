"""Measured pictures, decided on: kept or not and why, and the split."""

from prefect import task

from tasks.outputs import make
from tasks.records import StageRecord, settled


@task(name="filter", task_run_name="{name}", persist_result=False)
@settled
def filter(name: str, pipeline: str, overrides: list[str]) -> StageRecord:
    """Measured pictures, decided on: kept or not and why, and the split.

    Args:
        name: the output, as `hdm status` lists them.
        pipeline: entry of pipelines.yaml.
        overrides: `stage.field=value`, the last wins.
    """
    return make(name, pipeline, overrides)
