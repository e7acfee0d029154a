"""Generated images and their scores."""

from prefect import task

from tasks.outputs import make
from tasks.records import StageRecord, settled


@task(name="evaluate", task_run_name="{name}", persist_result=False)
@settled
def evaluate(name: str, pipeline: str, overrides: list[str]) -> StageRecord:
    """Generated images and their scores.

    Args:
        name: the output, as `hdm status` lists them.
        pipeline: entry of pipelines.yaml.
        overrides: `stage.field=value`, the last wins.
    """
    return make(name, pipeline, overrides)
