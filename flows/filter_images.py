"""Measure every picture, then decide: keep or reject, why, and into which split."""

from prefect import flow

from tasks import reporter
from tasks.filter import filter
from tasks.outputs import checked
from tasks.records import StageRecord, run_name, settled


@flow(name="filter-images", flow_run_name=run_name, persist_result=True)
@settled
def filter_images(
    pipeline: str = "demo", outputs: list[str] = [], overrides: list[str] = []
) -> list[StageRecord]:
    """Measure every picture, then decide: keep or reject, why, and into which split.

    Args:
        pipeline: entry of pipelines.yaml.
        outputs: only these outputs of the stage; none named: all of them.
        overrides: settings as `stage.field=value`, the last wins.
    """
    with reporter.run(pipeline, overrides):
        return [
            filter(name, pipeline, overrides, return_state=True).result()
            for name in checked("filter", pipeline, outputs, overrides)
        ]
