"""How many processes train where `train.num_processes` is "auto".

Steps of a small model are hundreds of operations that are too short to be shared by threads. Two
processes on two cores, each with half of the batch, take 0.52 times as long as one with two threads
(bench/RESULTS.md).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from hdm.config import Pipeline
from hdm.models.devices import count_devices, quiet_device
from hdm.training.job import newest_checkpoint
from hdm.training.settings import TrainSettings

MOST_ON_CPU = 4
LEAST_SHARE = 8
"""Pictures of a batch that make a process worth its exchange of gradients."""


def with_processes(pipeline: Pipeline, scratch: Path | None = None) -> Pipeline:
    """The pipeline with a number in place of "auto".

    Args:
        pipeline: resolved.
        scratch: of the phase. A training that lies there keeps the number that it began with:
            sums are rounded by it.

    Raises:
        ConfigError: settings that do not go together with so many processes.
    """
    train = pipeline.train
    if train.num_processes != "auto":
        return pipeline
    begun = _begun(scratch) if scratch is not None else None
    count = begun or fitting_processes(train, _available(train.device))
    settled = TrainSettings.model_validate({**train.model_dump(), "num_processes": count})
    return pipeline.model_copy(update={"train": settled})


def fitting_processes(train: TrainSettings, most: int) -> int:
    """The largest number of processes, at most `most`, that share every batch in equal even parts
    of at least eight pictures; 1 if there is none.
    """
    for count in range(most, 1, -1):
        shares = [divmod(phase.batch_size, count) for phase in train.phases]
        if all(not rest and not size % 2 and size >= LEAST_SHARE for size, rest in shares):
            return count
    return 1


def _available(device: str) -> int:
    """How many processes find a device, or a core, of their own."""
    kind = quiet_device(device).partition(":")[0]
    if kind == "cpu":
        return min(MOST_ON_CPU, len(os.sched_getaffinity(0)))
    return count_devices(kind)


def _begun(scratch: Path) -> int | None:
    """With how many processes a training was begun that can go on; None if there is none."""
    if newest_checkpoint(scratch) is None:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads((scratch / "job.json").read_bytes())
        return int(told["pipeline"]["train"]["num_processes"])
    return None
