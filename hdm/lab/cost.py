"""What training on an image costs under one setting, relative to another: steps in turns, in one
process, on the real data.

Runs that follow each other on a machine with other work on it cannot be compared by the clock,
steps that alternate can. On the CPU it is the processor time of one thread that is taken, which
other work lengthens least; elsewhere the clock. `python -m hdm.lab.cost REQUEST.json` is that
process; it prints the seconds.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdm.child import child_environment
from hdm.config import Pipeline
from hdm.errors import HdmError
from hdm.files import write_json
from hdm.models.components import autoencoder_in, resolve
from hdm.models.cpu import training_environment
from hdm.stages import identities, steps
from hdm.store import Store
from hdm.training.process.job import Job

if TYPE_CHECKING:
    from hdm.training.trainer import Trainer

ROUNDS, WARM_UP = 15, 2


@dataclass(frozen=True)
class Cost:
    """The time of an image over that of the reference, along the training.

    Args:
        parts: (from which share of the training on, ratio), ascending, the first from 0. TREAD's
            schedules have several.
    """

    parts: tuple[tuple[float, float], ...]

    def after(self, share: float) -> float:
        """The time that a share of the training takes, in whole trainings of the reference."""
        ends = [*(start for start, _ in self.parts[1:]), 1.0]
        return sum(
            ratio * max(0.0, min(share, end) - start)
            for (start, ratio), end in zip(self.parts, ends, strict=True)
        )

    @property
    def whole(self) -> float:
        """Of the whole training: the mean ratio."""
        return self.after(1.0)

    def share_at(self, time: float) -> float:
        """How far the training is after that time; the inverse of `after`, at most 1."""
        bounds = [*(start for start, _ in self.parts), 1.0]
        for (start, end), (_, ratio) in zip(pairwise(bounds), self.parts, strict=True):
            if time <= self.after(end):
                return start + (time - self.after(start)) / ratio
        return 1.0


def measure_costs(
    pipelines: Mapping[str, Pipeline], store: Store, rounds: int = ROUNDS
) -> dict[str, Cost]:
    """Time steps of some trainings in turns.

    Args:
        pipelines: by setting, of one phase each and equally many images; the first is the
            reference. What they train on has to be in the store.
        rounds: steps of each, at each of the points where a schedule changes the work.

    Raises:
        InputError: inputs are not in the store.
        HdmError: the steps failed.
    """
    starts = sorted(
        {
            start
            for pipeline in pipelines.values()
            for start, _ in pipeline.train.phases[0].tread_rates
        }
    )
    with tempfile.TemporaryDirectory(prefix="hdm-lab-") as folder:
        jobs = [
            _job(pipeline, store, Path(folder) / str(number))
            for number, pipeline in enumerate(pipelines.values())
        ]
        request = Path(folder) / "request.json"
        write_json(
            request, {"jobs": [asdict(job) for job in jobs], "starts": starts, "rounds": rounds}
        )
        seconds = _run(request, jobs[0].settings.train.device)
    reference = seconds[0]
    sizes = [job.phase.batch_size for job in jobs]
    costs = {}
    for name, mine, size in zip(pipelines, seconds, sizes, strict=True):
        ratios = map(_ratio, mine, reference)
        parts = [
            (start, ratio * sizes[0] / size) for start, ratio in zip(starts, ratios, strict=True)
        ]
        costs[name] = Cost(tuple(parts))
    return costs


def _ratio(mine: Sequence[float], base: Sequence[float]) -> float:
    """The median over rounds: a step that was disturbed spoils its own round alone."""
    return statistics.median(one / other for one, other in zip(mine, base, strict=True))


def _job(pipeline: Pipeline, store: Store, folder: Path) -> Job:
    name = f"train.{pipeline.train.phases[0].name}"
    known = identities(pipeline, name)
    step = next(step for step in steps(pipeline) if step.name == name)
    inputs = {needed: store.need(known[needed], "the lab") for needed in step.inputs}
    # Processor time of threads that wait awake for each other is no work.
    alone = pipeline.model_copy(update={"threads": 1})
    components = pipeline.components
    return Job.apart(
        alone,
        0,
        inputs,
        folder,
        resolve(components).need("text_encoder"),
        autoencoder_in(inputs, components),
    )


def _run(request: Path, device: str) -> list[list[list[float]]]:
    quicker = training_environment() if device == "cpu" else {}
    command = [sys.executable, "-m", "hdm.lab.cost", str(request)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=child_environment(quicker), check=False
    )
    if done.returncode:
        raise HdmError(
            "timing the steps failed:"
            f" {(done.stderr.strip().splitlines() or ['nothing was said'])[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(path: Path) -> None:
    """The process: print the seconds of every step, by job, start and round."""
    from hdm.models.devices import choose_device, deterministic
    from hdm.training.process.guard import StopRequest
    from hdm.training.trainer import Trainer

    request: dict[str, Any] = json.loads(path.read_bytes())
    jobs = [Job(**values) for values in request["jobs"]]
    device = choose_device(jobs[0].settings.train.device, "timing")
    with deterministic(device == "cpu"):  # as in training
        trainers = [Trainer(job, StopRequest(), device) for job in jobs]
        print(json.dumps(_in_turns(trainers, request["starts"], request["rounds"])))
    for trainer in trainers:
        trainer.prefetcher.close()


def _in_turns(
    trainers: Sequence[Trainer], starts: Sequence[float], rounds: int
) -> list[list[list[float]]]:
    seconds: list[list[list[float]]] = [[[] for _ in starts] for _ in trainers]
    for place, (start, end) in enumerate(pairwise([*starts, 1.0])):
        for turn in range(WARM_UP + rounds):
            # The order changes from round to round: who comes after whom finds other things in the
            # caches.
            for number in range(turn, turn + len(trainers)):
                trainer = trainers[number % len(trainers)]
                trainer.state.position = replace(
                    trainer.state.position, num_images_seen=_seen(trainer, start, end, turn)
                )
                taken = _step_sec(trainer)
                if turn >= WARM_UP:
                    seconds[number % len(trainers)][place].append(taken)
    return seconds


def _seen(trainer: Trainer, start: float, end: float, turn: int) -> int:
    """Images seen at a step of a part of the training: its first, the next, …, and where it has no
    more, its first again.
    """
    size = trainer.phase.batch_size
    first = math.ceil(start * trainer.num_images / size)
    after = math.ceil(end * trainer.num_images / size)
    return (first + turn % max(1, after - first)) * size


def _step_sec(trainer: Trainer) -> float:
    import torch

    on_cpu = trainer.ranks.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    begun = clock()
    trainer.step()
    if not on_cpu:
        torch.cuda.synchronize()
    return clock() - begun


if __name__ == "__main__":
    main(Path(sys.argv[1]))
