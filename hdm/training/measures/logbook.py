"""What training writes down while it goes: losses, norms and incidents, speed and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hdm.training.measures.meter import Machine, Meter
from hdm.training.measures.norms import by_part, tensor_norms
from hdm.training.measures.records import Metrics, Timing
from hdm.training.prefetcher import Example
from hdm.training.process.job import METRICS, TIMING, Job
from hdm.training.process.ranks import Ranks
from hdm.training.state.current import State
from hdm.training.state.position import Position


class Logbook:
    """That of a rank that writes nothing."""

    @property
    def content(self) -> bytes:
        """`metrics.jsonl` so far."""
        return b""

    def count(self, example: Example) -> None:
        """Count what a step did."""

    def add(self, state: State, line: Mapping[str, Any], waited_sec: float) -> None:
        """Write a line, unless it is empty; `waited_sec` for data since the start."""


class WrittenLogbook(Logbook):
    """That of rank 0: `metrics.jsonl` and `timing.jsonl`.

    Args:
        job: what is trained.
        ranks: of the training.
        now: where it starts.
        metrics: content of `metrics.jsonl` up to there.
    """

    def __init__(self, job: Job, ranks: Ranks, now: Position, metrics: bytes) -> None:
        self.batch_size = job.phase.batch_size
        self.metrics = Metrics(Path(job.folder) / METRICS, metrics)
        self.timing = Timing(Path(job.folder) / TIMING, now.num_images_seen)
        self.meter = _make_meter(job, ranks, self.timing.before)

    @property
    def content(self) -> bytes:
        return self.metrics.content

    def count(self, example: Example) -> None:
        # Padding counts, since it is computed.
        num_image = example.batch.crops.shape[1]
        num_text = example.batch.text_mask.shape[1]
        self.meter.count(self.batch_size, num_image, num_text, example.tread_rate)

    def add(self, state: State, line: Mapping[str, Any], waited_sec: float) -> None:
        step = state.position.step
        seen = state.position.num_images_seen
        if line:
            self.metrics.add(step, seen, line)
        # Lines that hold only a measurement come in between, and have no loss.
        if "loss" in line:
            held = state.optimizers.num_bytes
            self.timing.add(step, seen, line["loss"], waited_sec, self.meter, held)


def _make_meter(job: Job, ranks: Ranks, before: Mapping[str, Any]) -> Meter:
    """Of what steps do, on this machine; `before` is the last line of `timing.jsonl`."""
    settings = job.settings.train
    machine = Machine.look(
        ranks.device,
        ranks.count,
        settings.precision == "bfloat16",
        settings.peak_tflops,
        settings.price_per_hour,
    )
    return Meter(machine, settings.model, job.phase.tread_route, before)


def open_logbook(job: Job, ranks: Ranks, now: Position, metrics: bytes) -> Logbook:
    """Of this process; arguments as for `WrittenLogbook`."""
    return WrittenLogbook(job, ranks, now, metrics) if ranks.first else Logbook()


def step_line(
    state: State, norm: float, norms: Mapping[str, Tensor], factor: float
) -> dict[str, Any]:
    """A line of metrics: the mean loss since the last one, and what the last step was like.

    Args:
        state: after the step.
        norm: of its gradient.
        norms: of the gradient by tensor.
        factor: share of the full rate.
    """
    now = state.position
    line: dict[str, Any] = {
        # JSON has no NaN: the loss is None if every step since the last line was skipped.
        "loss": now.loss_sum / now.loss_count if now.loss_count else None,
        "grad_norm": norm if math.isfinite(norm) else None,
        "grad_norm_of": by_part(norms),
        "weight_norm_of": by_part(tensor_norms(state.trainable.parameters())),
        "skipped_steps": now.skipped,
        **state.optimizers.rates(factor),
    }
    if now.incidents:
        line["incidents"] = list(now.incidents)
    for technique in state.techniques:
        line |= technique.line(now)
    return line
