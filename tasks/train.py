"""One training phase, in child processes that cannot outlive this one."""

from prefect import task

from tasks.outputs import make
from tasks.records import StageRecord, settled


@task(name="train", task_run_name="{name}", persist_result=False)
@settled
def train(name: str, pipeline: str, overrides: list[str]) -> StageRecord:
    """One training phase, in child processes that cannot outlive this one.

    Args:
        name: the output, as `hdm status` lists them.
        pipeline: entry of pipelines.yaml.
        overrides: `stage.field=value`, the last wins.
    """
    return make(name, pipeline, overrides)
