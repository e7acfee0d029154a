"""Pictures and their given captions, fetched into tar shards."""

from prefect import task

from tasks.outputs import make
from tasks.records import StageRecord, settled


@task(name="download", task_run_name="{name}", persist_result=False)
@settled
def download(name: str, pipeline: str, overrides: list[str]) -> StageRecord:
    """Pictures and their given captions, fetched into tar shards.

    Args:
        name: the output, as `hdm status` lists them.
        pipeline: entry of pipelines.yaml.
        overrides: `stage.field=value`, the last wins.
    """
    return make(name, pipeline, overrides)
