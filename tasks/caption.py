"""Captions for the kept pictures."""

from prefect import task

from tasks.outputs import make
from tasks.records import StageRecord, settled


@task(name="caption", task_run_name="{name}", persist_result=False)
@settled
def caption(name: str, pipeline: str, overrides: list[str]) -> StageRecord:
    """Captions for the kept pictures.

    Args:
        name: the output, as `hdm status` lists them.
        pipeline: entry of pipelines.yaml.
        overrides: `stage.field=value`, the last wins.
    """
    return make(name, pipeline, overrides)
