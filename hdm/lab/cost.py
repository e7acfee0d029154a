"""Measure the time of training on an image under one setting relative to another: alternating steps
in one process, on the real data.

The clock cannot compare runs that follow each other on a machine with other work, but it can
compare steps that alternate. On the CPU the processor time of one thread is measured, which other
work lengthens least; elsewhere the clock. `python -m hdm.lab.cost REQUEST.json` is that process; it
prints the seconds.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
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
from hdm.stages import OutputGraph
from hdm.store import Store
from hdm.training.process.job import Job

if TYPE_CHECKING:
    from hdm.training.trainer import Trainer

ROUNDS = 15
# The first steps also allocate memory and fill caches, so they are not timed.
WARM_UP = 2


@dataclass(frozen=True)
class Cost:
    """The time of an image relative to the reference, along the training.

    Args:
        parts: (share of the training at which the part starts, ratio), ascending, the first at 0.
            TREAD's schedules have several.
    """

    parts: tuple[tuple[float, float], ...]

    def after(self, share: float) -> float:
        """The time of a share of the training, in units of a whole training of the reference."""
        time = 0.0
        for start, end, ratio in self._spans():
            time += ratio * max(0.0, min(share, end) - start)
        return time

    @property
    def whole(self) -> float:
        """The mean ratio over the whole training."""
        return self.after(1.0)

    def share_at(self, time: float) -> float:
        """The share of the training that is done after that time: the inverse of `after`, at most
        1.
        """
        for start, end, ratio in self._spans():
            if time <= self.after(end):
                return start + (time - self.after(start)) / ratio
        return 1.0

    def _spans(self) -> Iterator[tuple[float, float, float]]:
        """(start, end, ratio) of each part."""
        for (start, ratio), (end, _) in pairwise([*self.parts, (1.0, 0.0)]):
            yield start, end, ratio


def measure_costs(
    pipelines: Mapping[str, Pipeline], store: Store, rounds: int = ROUNDS
) -> dict[str, Cost]:
    """Time alternating steps of several trainings.

    Args:
        pipelines: by setting, with one phase each and equal numbers of images; the first is the
            reference. Their training data has to be in the store.
        rounds: steps of each, at each point where a schedule changes the work.

    Raises:
        InputError: inputs are not in the store.
        HdmError: the steps failed.
    """
    # Every share of the training at which some setting's schedule changes the work.
    starts: set[float] = set()
    for pipeline in pipelines.values():
        starts.update(start for start, _ in pipeline.train.phases[0].tread_rates)
    with tempfile.TemporaryDirectory(prefix="hdm-lab-") as folder:
        jobs = []
        for number, pipeline in enumerate(pipelines.values()):
            jobs.append(_job(pipeline, store, Path(folder) / str(number)))
        request = Path(folder) / "request.json"
        content = {"jobs": list(map(asdict, jobs)), "starts": sorted(starts), "rounds": rounds}
        write_json(request, content)
        seconds = _run(request, jobs[0].settings.train.device)
    reference = seconds[0]
    reference_size = jobs[0].phase.batch_size
    costs = {}
    for name, mine, job in zip(pipelines, seconds, jobs, strict=True):
        # From the time of a step to that of an image.
        scale = reference_size / job.phase.batch_size
        parts = []
        for start, own, base in zip(sorted(starts), mine, reference, strict=True):
            parts.append((start, _ratio(own, base) * scale))
        costs[name] = Cost(tuple(parts))
    return costs


def _ratio(mine: Sequence[float], base: Sequence[float]) -> float:
    """The median ratio over rounds, so that a disturbed step spoils only its own round."""
    return statistics.median(own / other for own, other in zip(mine, base, strict=True))


def _job(pipeline: Pipeline, store: Store, folder: Path) -> Job:
    name = f"train.{pipeline.train.phases[0].name}"
    graph = OutputGraph(pipeline)
    inputs = {
        needed: store.need(graph.identity(needed), "the lab") for needed in graph.step(name).inputs
    }
    # Threads that spin while waiting for each other would count as processor time.
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
    # The last line, since libraries may print before it.
    seconds: list[list[list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return seconds


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
    seconds: list[list[list[float]]] = []
    for _ in trainers:
        seconds.append([[] for _ in starts])
    for part, (start, end) in enumerate(pairwise([*starts, 1.0])):
        for turn in range(WARM_UP + rounds):
            # The order changes from round to round, since each training finds in the caches what
            # the one before has left there.
            for number in range(turn, turn + len(trainers)):
                trainer = trainers[number % len(trainers)]
                trainer.state.position = replace(
                    trainer.state.position, num_images_seen=_seen(trainer, start, end, turn)
                )
                step_sec = _step_sec(trainer)
                if turn >= WARM_UP:
                    seconds[number % len(trainers)][part].append(step_sec)
    return seconds


def _seen(trainer: Trainer, start: float, end: float, turn: int) -> int:
    """Images seen at a step of a part of the training, which starts over when the part has no more
    steps.
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
