"""A stage's Prefect task: one task run for each of its outputs."""

from __future__ import annotations

from prefect import Task, task

from hdm.stage_list import Stage
from tasks.outputs import make
from tasks.records import StageRecord, settled
from tasks.run import Run


def stage_task(stage: Stage, run: Run) -> Task[[str], StageRecord]:
    """The task that makes an output of the stage, or finds it in the store."""

    @task(name=stage.name, description=stage.help, task_run_name="{name}", persist_result=False)
    @settled
    def make_output(name: str) -> StageRecord:
        """Make one output of the stage.

        Args:
            name: the output, as `hdm status` lists them.
        """
        return make(run, name)

    return make_output
