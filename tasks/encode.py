"""Latents of one resolution, token ids, or text embeddings."""

from prefect import task

from tasks.outputs import make
from tasks.records import StageRecord, settled


@task(name="encode", task_run_name="{name}", persist_result=False)
@settled
def encode(name: str, pipeline: str, overrides: list[str]) -> StageRecord:
    """Latents of one resolution, token ids, or text embeddings.

    Args:
        name: the output, as `hdm status` lists them.
        pipeline: entry of pipelines.yaml.
        overrides: `stage.field=value`, the last wins.
    """
    return make(name, pipeline, overrides)
