"""The ranks of sharded trainings, one after another in one group of processes.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/training/run_sharded.py
DESCRIPTION.json

The description is a list of [job.json, step after which the last rank is asked to stop, or null].
Each rank writes beside the job's result how many bytes it holds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState

from hdm.sharding import local
from hdm.training.process.guard import StopRequest
from hdm.training.process.job import Job
from hdm.training.trainer import Trainer


class Stopped(Trainer):
    """Asked to stop after a step, on the last rank alone, as a signal comes to one before the
    others.
    """

    stop_step: int | None = None

    def step(self) -> None:
        super().step()
        is_last_rank = self.ranks.rank == self.ranks.count - 1
        if self.state.position.step == self.stop_step and is_last_rank:
            self.ranks.stop.requested = True


def held_bytes(trainer: Trainer) -> dict[str, int]:
    models = {"weights": trainer.state.trainable.model, "average": trainer.state.trainable.averaged}
    found = {
        name: sum(local(value).nbytes for value in model.parameters())
        for name, model in models.items()
    }
    return {**found, "optimizer": trainer.state.optimizers.num_bytes}


if __name__ == "__main__":
    for path, stop_step in json.loads(Path(sys.argv[1]).read_bytes()):
        job = Job.read(Path(path))
        AcceleratorState._reset_state()
        trainer = Stopped(job, StopRequest(), "cpu")
        trainer.stop_step = stop_step
        assert trainer.run() == (stop_step is None)
        (Path(job.scratch) / f"held-{trainer.ranks.rank}.json").write_text(
            json.dumps(held_bytes(trainer))
        )
