"""Generate images at fixed seeds and score them."""

from prefect import flow

from tasks import reporter
from tasks.evaluate import evaluate
from tasks.outputs import checked
from tasks.records import StageRecord, run_name, settled


@flow(name="evaluate-model", flow_run_name=run_name, persist_result=True)
@settled
def evaluate_model(
    pipeline: str = "demo", outputs: list[str] = [], overrides: list[str] = []
) -> list[StageRecord]:
    """Generate images at fixed seeds and score them.

    Args:
        pipeline: entry of pipelines.yaml.
        outputs: only these outputs of the stage; none named: all of them.
        overrides: settings as `stage.field=value`, the last wins.
    """
    with reporter.run(pipeline, overrides):
        return [
            evaluate(name, pipeline, overrides, return_state=True).result()
            for name in checked("evaluate", pipeline, outputs, overrides)
        ]
