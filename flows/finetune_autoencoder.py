"""Fine-tune the autoencoder on the kept pictures, where the pipeline says how."""

from prefect import flow

from tasks import reporter
from tasks.outputs import checked
from tasks.records import StageRecord, run_name, settled
from tasks.vae import vae


@flow(name="finetune-autoencoder", flow_run_name=run_name, persist_result=True)
@settled
def finetune_autoencoder(
    pipeline: str = "demo", outputs: list[str] = [], overrides: list[str] = []
) -> list[StageRecord]:
    """Fine-tune the autoencoder on the kept pictures, where the pipeline says how.

    Args:
        pipeline: entry of pipelines.yaml.
        outputs: only these outputs of the stage; none named: all of them.
        overrides: settings as `stage.field=value`, the last wins; vae.num_images=24000, for one, adds the stage to a pipeline without it.
    """
    with reporter.run(pipeline, overrides):
        return [
            vae(name, pipeline, overrides, return_state=True).result()
            for name in checked("vae", pipeline, outputs, overrides)
        ]
