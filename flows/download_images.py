"""Fetch the pictures of a pipeline's source into tar shards, with their given captions."""

from prefect import flow

from tasks import reporter
from tasks.download import download
from tasks.outputs import checked
from tasks.records import StageRecord, run_name, settled


@flow(name="download-images", flow_run_name=run_name, persist_result=True)
@settled
def download_images(
    pipeline: str = "demo", outputs: list[str] = [], overrides: list[str] = []
) -> list[StageRecord]:
    """Fetch the pictures of a pipeline's source into tar shards, with their given captions.

    Args:
        pipeline: entry of pipelines.yaml.
        outputs: only these outputs of the stage; none named: all of them.
        overrides: settings as `stage.field=value`, the last wins.
    """
    with reporter.run(pipeline, overrides):
        return [
            download(name, pipeline, overrides, return_state=True).result()
            for name in checked("download", pipeline, outputs, overrides)
        ]
