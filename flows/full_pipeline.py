"""The whole pipeline: one flow run a stage, and one a training phase."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.stages import FLOWS
from hdm.stage_list import STAGE_NAMES
from tasks import reporter
from tasks.outputs import planned, preflight, remember
from tasks.records import StageRecord, settled
from tasks.report import report

StageName = Annotated[str, Field(title="a stage", json_schema_extra={"enum": list(STAGE_NAMES)})]
OutputName = Annotated[
    str, Field(pattern=r"^[a-z]+\.\w+$", title="one output", examples=["train.256px"])
]


@flow(name="full-pipeline", flow_run_name="{pipeline}", persist_result=True)
@settled
def full_pipeline(
    pipeline: str = "demo",
    start_from: StageName | OutputName | None = None,
    stop_after: StageName | OutputName | None = None,
    overrides: list[str] = [],
) -> list[StageRecord]:
    """From a list of pictures to a trained and measured model; what is finished is found and not
    made again.

    Args:
        pipeline: entry of pipelines.yaml.
        start_from: the first stage to run, or the first output, as train.256px; what comes before
            has to be in the store. None: the first.
        stop_after: the last stage or output to run. None: the last.
        overrides: settings as `stage.field=value`, the last wins.
    """
    with reporter.run(pipeline, overrides):
        records: list[StageRecord] = []
        remember(pipeline, overrides, stop_after)
        for stage, outputs in planned(pipeline, overrides, start_from, stop_after):
            # Before every stage: what was made meanwhile may show that a later one cannot work.
            preflight(pipeline, overrides, outputs[0], stop_after)
            records += FLOWS[stage](pipeline, outputs, overrides)
        report(pipeline, overrides, records)
    return records
