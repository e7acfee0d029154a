"""One Prefect flow for each stage, named by its deployment: `flows.stages.filter_images` is
`filter-images`.
"""

from functools import partial
from typing import Any

from prefect import Flow, flow

from hdm.stage_list import Stage, stages
from tasks.configuration import Project
from tasks.outputs import checked
from tasks.records import StageRecord, run_name, settled
from tasks.run import Begin, running
from tasks.stage import stage_task


def stage_flow(stage: Stage, begin: Begin) -> Flow[..., list[StageRecord]]:
    """The flow that makes the outputs of one stage.

    Args:
        begin: begins a run for this stage alone, or joins the run of the whole pipeline.
    """

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
        with begin(pipeline, overrides) as run:
            make_output = stage_task(stage, run)
            records = []
            # Checked here too: a stage's own deployment has no pipeline's flow around it.
            for name in checked(run, stage.name, outputs):
                # A plain call returns the state that `settled` ends the task in, even a failed one.
                record = make_output(name, return_state=True).result()
                records.append(record)
            return records

    return run_stage


def __getattr__(name: str) -> Any:
    """The flow of a deployment by its entrypoint's name, as `filter_images`. Its process is started
    for it alone; the environment says where it works.

    Raises:
        AttributeError: no stage has such a flow.
    """
    for stage in stages():
        if name == stage.flow.replace("-", "_"):
            return stage_flow(stage, partial(running, Project.chosen()))
    raise AttributeError(f"module {__name__} has no {name!r}")
