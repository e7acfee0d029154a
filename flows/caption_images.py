"""Write the kept pictures' captions: given, from a model, or from a template."""

from prefect import flow

from tasks import reporter
from tasks.caption import caption
from tasks.outputs import checked
from tasks.records import StageRecord, run_name, settled


@flow(name="caption-images", flow_run_name=run_name, persist_result=True)
@settled
def caption_images(
    pipeline: str = "demo", outputs: list[str] = [], overrides: list[str] = []
) -> list[StageRecord]:
    """Write the kept pictures' captions: given, from a model, or from a template.

    Args:
        pipeline: entry of pipelines.yaml.
        outputs: only these outputs of the stage; none named: all of them.
        overrides: settings as `stage.field=value`, the last wins.
    """
    with reporter.run(pipeline, overrides):
        return [
            caption(name, pipeline, overrides, return_state=True).result()
            for name in checked("caption", pipeline, outputs, overrides)
        ]
