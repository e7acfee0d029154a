"""One Prefect flow for each stage, named by its deployment: `flows.stages.filter_images` is
`filter-images`.
"""

from typing import Any

from prefect import Flow, flow

from hdm.stage_list import STAGES, Stage
from tasks import reporter
from tasks.outputs import checked
from tasks.records import StageRecord, run_name, settled
from tasks.stage import stage_task


def stage_flow(stage: Stage) -> Flow[..., list[StageRecord]]:
    """The flow that makes the outputs of one stage."""
    make_output = stage_task(stage)

    @flow(name=stage.flow, description=stage.help, flow_run_name=run_name, persist_result=True)
    @settled
    def run_stage(
        pipeline: str = "demo", outputs: list[str] = [], overrides: list[str] = []
    ) -> list[StageRecord]:
        """Run the stage; finished outputs are found and not made again.

        Args:
            pipeline: entry of pipelines.yaml.
            outputs: make only these outputs of the stage. Empty: all of them.
            overrides: settings as `stage.field=value`, the last wins.
        """
        with reporter.run(pipeline, overrides):
            return [
                make_output(name, pipeline, overrides, return_state=True).result()
                for name in checked(stage.name, pipeline, outputs, overrides)
            ]

    return run_stage


FLOWS = {stage.name: stage_flow(stage) for stage in STAGES}
"""By name of the stage."""


def __getattr__(name: str) -> Any:
    """The flow of a deployment by its entrypoint's name, as `filter_images`.

    Raises:
        AttributeError: no stage has such a flow.
    """
    for stage in STAGES:
        if name == stage.flow.replace("-", "_"):
            return FLOWS[stage.name]
    raise AttributeError(f"module {__name__} has no {name!r}")
