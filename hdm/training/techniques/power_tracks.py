"""Power-function averages of the weights, kept while they are trained and written down now and
then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hdm.model_files.power_ema import gamma_of
from hdm.sharding import gathered, local, share
from hdm.training.state.milestones import Milestones
from hdm.training.state.position import Position
from hdm.training.state.technique import Step, Technique


class PowerTracks:
    """Power-function averages of parameters, kept while they are trained.

    Args:
        parameters: what is averaged, by name.
        lengths: σ_rel of each average.
    """

    def __init__(self, parameters: Mapping[str, Tensor], lengths: Iterable[float]) -> None:
        self._names = list(parameters)
        self._theirs = list(parameters.values())
        self._averages: dict[float, list[Tensor]] = {}
        for length in lengths:
            self._averages[length] = [value.detach().clone() for value in self._theirs]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (from 0): θ̂ ← β·θ̂ + (1-β)·θ with β
        = (1 - 1/t)^(γ+1) (section 3.1).
        """
        for length, mine in self._averages.items():
            # β is 0 at the first step, so nothing remains of the random start.
            weight = 1 - (1 - 1 / (step + 1)) ** (gamma_of(length) + 1)
            # Each process averages its own shard.
            averages = [local(average) for average in mine]
            torch._foreach_lerp_(averages, [local(value) for value in self._theirs], weight)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """`ema-<length>` → parameter → its average."""
        found = {}
        for length, mine in self._averages.items():
            found[f"ema-{length:g}"] = dict(zip(self._names, mine, strict=True))
        return found

    @torch.no_grad()
    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Bring back one of `tensors()`."""
        for parameter, average in self.tensors()[name].items():
            local(average).copy_(share(tensors[parameter], average))


class PowerEma(Technique):
    """Keeps the averages, and writes them down at even steps and at the end.

    Args:
        parameters: what is averaged, by name.
        lengths: σ_rel of each average.
        milestones: where they are written down.
        snapshot_steps: when.
        writes: whether this process writes; one that does not helps to gather sharded averages.
        takes_part: whether it does even that.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lengths: Iterable[float],
        milestones: Milestones,
        snapshot_steps: frozenset[int],
        *,
        writes: bool,
        takes_part: bool,
    ) -> None:
        self.tracks = PowerTracks(parameters, lengths)
        self.milestones = milestones
        self.snapshot_steps = snapshot_steps
        self.writes = writes
        self.takes_part = takes_part

    def after_step(self, step: Step) -> list[str]:
        self.tracks.update(step.before.step)  # their clock goes on at a skipped step too
        return []

    def due(self, now: Position) -> bool:
        return now.ended or now.step in self.snapshot_steps

    def conclude(self, now: Position, measured: Mapping[str, Any]) -> dict[str, Any]:
        if self.due(now) and self.takes_part:
            self.milestones.add_snapshots(now.step, self.tracks.tensors(), writes=self.writes)
        return {}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {name: gathered(track) for name, track in self.tracks.tensors().items()}

    def load(self, tensors: Callable[[str], Mapping[str, Tensor]]) -> None:
        for name in self.tracks.tensors():
            self.tracks.load(name, tensors(name))
