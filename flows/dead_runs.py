"""The automation that marks a run as Crashed when its process is gone: `python -m flows.dead_runs`, once a server has started.

Prefect alone leaves such a run Running for ever. Every flow sends a heartbeat; no word from it for a while means that nobody lives.
"""

from datetime import timedelta

from prefect.automations import Automation, EventTrigger, Posture
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState

NAME = "runs whose process died"
SILENCE = timedelta(seconds=75)  # heartbeats come every 30 s


def create() -> None:
    """Make the automation, unless the server has it."""
    with get_client(sync_client=True) as client:
        if client.read_automations_by_name(NAME):
            return
    Automation(
        name=NAME,
        description="no heartbeat: the run is Crashed, and can be retried",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},  # the next heartbeat, or any state
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="its process is gone; retry it, or run the same again",
            )
        ],
    ).create()


if __name__ == "__main__":
    create()
