"""The autoencoder, fine-tuned on the kept pictures."""

from prefect import task

from tasks.outputs import make
from tasks.records import StageRecord, settled


@task(name="vae", task_run_name="{name}", persist_result=False)
@settled
def vae(name: str, pipeline: str, overrides: list[str]) -> StageRecord:
    """The autoencoder, fine-tuned on the kept pictures.

    Args:
        name: the output, as `hdm status` lists them.
        pipeline: entry of pipelines.yaml.
        overrides: `stage.field=value`, the last wins.
    """
    return make(name, pipeline, overrides)
