"""Write token ids, text embeddings where asked for, and latents for every resolution."""

from prefect import flow

from tasks import reporter
from tasks.encode import encode
from tasks.outputs import checked
from tasks.records import StageRecord, run_name, settled


@flow(name="encode-latents", flow_run_name=run_name, persist_result=True)
@settled
def encode_latents(
    pipeline: str = "demo", outputs: list[str] = [], overrides: list[str] = []
) -> list[StageRecord]:
    """Write token ids, text embeddings where asked for, and latents for every resolution.

    Args:
        pipeline: entry of pipelines.yaml.
        outputs: only these outputs of the stage; none named: all of them.
        overrides: settings as `stage.field=value`, the last wins.
    """
    with reporter.run(pipeline, overrides):
        return [
            encode(name, pipeline, overrides, return_state=True).result()
            for name in checked("encode", pipeline, outputs, overrides)
        ]
