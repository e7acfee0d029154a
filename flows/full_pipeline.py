"""The whole pipeline: one flow run a stage, and one a training phase."""

from contextlib import nullcontext
from typing import Annotated, Any

from prefect import Flow, flow
from pydantic import Field

from flows.stages import stage_flow
from hdm.stage_list import stage_names, stages
from tasks.configuration import Project
from tasks.outcome import Outcome
from tasks.outputs import planned, preflight, remember
from tasks.records import StageRecord, settled
from tasks.report import report_task
from tasks.run import running

# Prefect's form shows the enumeration as a choice, and the titles of both alternatives.
StageName = Annotated[str, Field(title="a stage", json_schema_extra={"enum": list(stage_names())})]
OutputName = Annotated[
    str, Field(pattern=r"^[a-z]+\.\w+$", title="one output", examples=["train.256px"])
]


def pipeline_flow(project: Project, outcome: Outcome | None = None) -> Flow[..., list[StageRecord]]:
    """The flow that runs a pipeline of a project.

    Args:
        outcome: is filled in by its run.
    """

    @flow(name="full-pipeline", flow_run_name="{pipeline}", persist_result=True)
    @settled
    def full_pipeline(
        pipeline: str = "demo",
        start_from: StageName | OutputName | None = None,
        stop_after: StageName | OutputName | None = None,
        overrides: list[str] = [],
    ) -> list[StageRecord]:
        """From a list of pictures to a trained and measured model; what is finished is found and
        not made again.

        Args:
            pipeline: entry of pipelines.yaml.
            start_from: the first stage to run, or the first output, as train.256px; what comes
                before has to be in the store. None: the first.
            stop_after: the last stage or output to run. None: the last.
            overrides: settings as `stage.field=value`, the last wins.
        """
        with running(project, pipeline, overrides, outcome=outcome) as run:
            # Each stage's flow joins the run that is open here instead of beginning its own.
            flows = {
                stage.name: stage_flow(stage, lambda *_: nullcontext(run)) for stage in stages()
            }
            records: list[StageRecord] = []
            # Before any work: `hdm status` shows runs in progress too.
            remember(run, stop_after)
            for stage, outputs in planned(run.settings, start_from, stop_after):
                # Before every stage: what was made meanwhile may show that a later one cannot work.
                preflight(run, outputs[0], stop_after)
                # Nested flow runs in this process: a retry of the pipeline in Prefect resumes them.
                records += flows[stage](pipeline, outputs, overrides)
            report_task(run)(records)
        return records

    return full_pipeline


def __getattr__(name: str) -> Any:
    """The flow of the deployment. Its process is started for it alone; the environment says where
    it works.

    Raises:
        AttributeError: it is another name.
    """
    if name == "full_pipeline":
        return pipeline_flow(Project.chosen())
    raise AttributeError(f"module {__name__} has no {name!r}")
