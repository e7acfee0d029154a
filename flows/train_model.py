"""Train the denoiser, phase by phase of rising resolution."""

from prefect import flow

from tasks import reporter
from tasks.outputs import checked
from tasks.records import StageRecord, run_name, settled
from tasks.train import train


@flow(name="train-model", flow_run_name=run_name, persist_result=True)
@settled
def train_model(
    pipeline: str = "demo", outputs: list[str] = [], overrides: list[str] = []
) -> list[StageRecord]:
    """Train the denoiser, phase by phase of rising resolution.

    Args:
        pipeline: entry of pipelines.yaml.
        outputs: only these outputs of the stage; none named: all of them.
        overrides: settings as `stage.field=value`, the last wins.
    """
    with reporter.run(pipeline, overrides):
        return [
            train(name, pipeline, overrides, return_state=True).result()
            for name in checked("train", pipeline, outputs, overrides)
        ]
