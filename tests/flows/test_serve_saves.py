"""A training that was started from a deployment, when `hdm serve` is stopped or killed: what it has
learned is kept.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from hdm.training.process.job import METRICS, TIMING, Job, checkpoint_step, newest_checkpoint
from hdm.training.process.running import progress, trainings
from tasks.services import runs
from tests.faults.test_kill_stages import TINY
from tests.flows.served import STOP_SEC, Served, serve, states, until, with_tables

BATCH = 4
ENDLESS = (
    *TINY,
    "train.phases.0.num_images=10000000",
    f"train.phases.0.batch_size={BATCH}",
    "train.checkpoint_sec=10000000",  # nothing is saved unasked
)


def train(served: Served, kept: int) -> tuple[str, Job]:
    """Start the pipeline from its deployment; the flow run's id, once its training has gone on for
    some steps, from those that are kept.
    """
    flow_run = served.schedule("full-pipeline", ENDLESS)
    until(lambda: trainings(served.root) and progress(trainings(served.root)[0]))
    (job,) = trainings(served.root)
    before = steps_seen(job)
    until(lambda: steps_seen(job) != before and logged(job) > kept)
    return flow_run, job


def steps_seen(job: Job) -> list[int]:
    """Pictures seen at each line of its log of speed, which every run of it goes on with."""
    lines = (Path(job.folder) / TIMING).read_bytes().splitlines()
    return [json.loads(line)["num_images_seen"] for line in lines]


def checkpointed(job: Job) -> int:
    """Steps in the newest checkpoint."""
    found = newest_checkpoint(Path(job.scratch))
    assert found is not None
    return checkpoint_step(found)


def logged(job: Job) -> int:
    """The last step that was logged."""
    last = (Path(job.folder) / METRICS).read_bytes().splitlines()[-1]
    line: dict[str, int] = json.loads(last)
    return line["step"]


def test_a_served_training_is_saved_by_signals_and_goes_on_after_a_kill(
    tmp_path: Path, prefect_tables: Path
) -> None:
    with_tables(tmp_path, prefect_tables)
    kept, lines = [0], 0
    ended: dict[str, set[str]] = {}
    for number in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        with serve(tmp_path) as served:
            until(lambda: all(served.states()[one] in ends for one, ends in ended.items()))
            flow_run, job = train(served, kept[-1])
            seen = min(steps_seen(job)[lines:])
            assert seen > BATCH * kept[-1], "it goes on from what was saved"
            os.killpg(served.process.pid, number)
            code = served.process.wait(STOP_SEC)
            until(lambda: not runs(tmp_path) and not trainings(tmp_path))
            if number == signal.SIGKILL:
                served.process.returncode = 0
            else:
                assert code == 0
        kept.append(checkpointed(job))
        lines = len(steps_seen(job))
        if number != signal.SIGKILL:
            assert kept[-1] >= logged(job) > kept[-2], "it saved before it stopped"
        # Its worker, told to stop as serve dies, may leave a killed one the time to say so itself.
        ended[flow_run] = {"Crashed", "Cancelled"} if number == signal.SIGKILL else {"Cancelled"}
    assert states(tmp_path)[flow_run] == "Cancelled"
