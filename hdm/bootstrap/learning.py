"""What the three trainings share: learning rate schedule, clipped gradients, checkpoints, a time
limit, and weights in 16 bits.

No random state is saved: a step's random numbers are a function of the seed and its number, so a
training that was stopped or killed resumes bit by bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hdm.bootstrap.pace import Budget, Pace, Schedule
from hdm.errors import HdmError
from hdm.muon import Muon
from hdm.progress import Tracker, track
from hdm.sharding import finite
from hdm.training.loop import run_course
from hdm.training.process.guard import Signals, Stopped, signals_counted
from hdm.training.state import checkpoint
from hdm.training.state.optimizers import load_state, state_tensors

WARMUP = 0.03  # share of the steps
FINAL_RATE = 0.02  # share of the full rate


@dataclass(frozen=True)
class Place:
    """Where a training keeps its checkpoints, and the time that it has.

    Args:
        scratch: the checkpoints' folder; a training that was stopped there is resumed.
        part: its part of the budget.
        budget: of the run.
        checkpoint_sec: seconds between checkpoints; one is also written at the end and before it
            stops on a signal.
    """

    scratch: Path
    part: str
    budget: Budget
    checkpoint_sec: float


class Training:
    """Muon for matrices and convolutions, AdamW for the rest; the rate rises over 3 % of the steps,
    then falls along a cosine to 2 %.

    Args:
        model: what is trained; the newest checkpoint's weights, if there is one, are loaded into
            it.
        num_items: items to see, repetitions counted.
        batch_size: items a step.
        rate: AdamW's.
        muon_rate: Muon's, in AdamW's units.
        place: where checkpoints are, and how long it may take.
        embeddings: AdamW also updates the matrices whose names contain one of these.
    """

    loss: Callable[[int], tuple[Tensor, str]]
    pace: Pace
    signals: Signals
    bar: Tracker

    def __init__(
        self,
        model: nn.Module,
        num_items: int,
        batch_size: int,
        rate: float,
        muon_rate: float,
        place: Place,
        embeddings: tuple[str, ...] = (),
    ) -> None:
        # Matrices go to Muon; vectors, single rows or columns and embeddings to AdamW.
        self.parameters = {}
        self.names = {}
        matrices = []
        others = []
        for name, value in model.named_parameters():
            if not value.requires_grad:
                continue
            self.parameters[name] = value
            self.names[id(value)] = name
            # For a single row or column, Muon's orthogonalisation would only be a normalisation.
            is_matrix = value.ndim >= 2 and min(value.shape[:2]) > 1
            is_embedding = any(part in name for part in embeddings)
            if is_matrix and not is_embedding:
                matrices.append(value)
            else:
                others.append(value)
        self.optimizers = [
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
            Muon(matrices, lr=muon_rate, size="adamw"),
        ]
        self.rates = [rate, muon_rate]
        self.batch_size = batch_size
        self.place = place
        self.schedule = Schedule([(0, max(1, num_items // batch_size))])
        # Then where a stopped training left off.
        self.num_done = 0
        self.saved_at = time.monotonic()
        self._resume()
        self.saved_step = self.num_done

    def run(self, loss: Callable[[int], tuple[Tensor, str]], what: str, unit: str) -> Schedule:
        """Train to the end, within the time that is left.

        Args:
            loss: from the number of a step its loss and a text for the progress display.
            what, unit: names of the training and its items in the progress display.

        Returns:
            The schedule as it turned out.

        Raises:
            Stopped: SIGTERM or SIGINT came; a checkpoint is saved.
        """
        budget = self.place.budget
        part = self.place.part
        until = budget.until(part, self.schedule.progress(self.num_done))
        self.loss = loss
        self.pace = Pace(self.schedule, self.num_done, until)
        total = self.schedule.num_steps * self.batch_size
        with signals_counted() as signals, track(what, total, unit) as bar, budget.timed(part):
            bar.advance(self.num_done * self.batch_size)
            self.signals = signals
            self.bar = bar
            run_course(self)
        if signals.count:
            raise Stopped
        return self.schedule

    @property
    def is_done(self) -> bool:
        return self.num_done >= self.schedule.num_steps

    def serve(self) -> bool:
        stopping = self.signals.count > 0
        is_late = time.monotonic() - self.saved_at > self.place.checkpoint_sec
        # A training that has just begun or resumed has nothing new to save.
        if stopping or (is_late and self.num_done != self.saved_step):
            self.save()
        return stopping

    def report(self) -> bool:
        return True

    def step(self) -> None:
        value, text = self.loss(self.num_done)
        self._update(value)
        self.bar.advance(self.batch_size, text)
        self.pace.look(self.num_done)

    def close(self) -> None:
        """Nothing to close: it has no threads."""

    def _update(self, loss: Tensor) -> None:
        """One step; gradients are clipped to a norm of 1."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        share = rate_share(self.schedule, self.num_done)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.num_done += 1

    def save(self) -> None:
        tensors: dict[str, Mapping[str, Tensor]] = {
            "weights": self.parameters,
            "optimizer": state_tensors(self.optimizers, self.names),
        }
        state = {"step": self.num_done, "schedule": self.schedule.bends}
        # No position in the data: a step's batch follows from its number.
        checkpoint.save(self.place.scratch, self.num_done, tensors, b"", state)
        # With the checkpoint: a resumed run repeats the steps since then, and gets their time back.
        self.place.budget.save()
        self.saved_step = self.num_done
        self.saved_at = time.monotonic()

    @torch.no_grad()
    def _resume(self) -> None:
        """Resume from the newest intact checkpoint, if there is one."""
        saved = checkpoint.newest(self.place.scratch)
        if saved is None:
            return
        weights = saved.tensors("weights")
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
        load_state(self.optimizers, self.names, saved.tensors("optimizer"))
        self.schedule = Schedule(saved.state["schedule"])
        self.num_done = saved.state["step"]


def rate_share(schedule: Schedule, step: int) -> float:
    """Share of the full learning rate at a step, in (0, 1]."""
    rising = schedule.progress(step + 1) / WARMUP
    falling = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (
        1 + math.cos(math.pi * schedule.progress(step))
    )
    return min(1.0, rising) * falling


def halve(model: Any) -> Any:
    """The model with 16-bit weights, for writing; loaders convert them back to 32 bits.

    Raises:
        HdmError: training exploded, or weights are too large for 16 bits.
    """
    halved = model.half()
    if not finite(halved.state_dict()):
        raise HdmError(
            f"training exploded: weights of {type(model).__name__} are not finite in 16 bits",
            do="try another --seed, or more --minutes",
        )
    return halved
