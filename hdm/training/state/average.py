"""The moving average of the weights, which is what is measured, shown and trained on in the next
phase.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from hdm.sharding import local

Model = TypeVar("Model", bound=nn.Module)


def decay_at(step: int, decay: float) -> float:
    """How much of the average stays at a step: a ramp from 1/10 up to `decay`, so that the
    beginning is soon forgotten.

    Args:
        step: optimizer steps done before this one.
        decay: in the end.
    """
    return min(decay, (1 + step) / (10 + step))


class Average(Generic[Model]):
    """An exponential moving average of a model's parameters, as a model. Those that require no
    gradient are the model's own.

    Args:
        model: what is averaged; its weights are the start.
        decay: kept of the average at each step, after the ramp.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self._averaged = model
        # Frozen weights never differ, so both models hold the same ones.
        frozen = {id(value): value for value in model.parameters() if not value.requires_grad}
        self.model: Model = copy.deepcopy(model, frozen).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the model's weights after step number `step` (from 0)."""
        # Asked for anew: sharding a model exchanges its parameters.
        mine, theirs = [], []
        pairs = zip(self.model.parameters(), self._averaged.parameters(), strict=True)
        for average, parameter in pairs:
            if parameter.requires_grad:
                mine.append(local(average))
                theirs.append(local(parameter))
        # One call updates all tensors; a loop would cost more than the arithmetic.
        torch._foreach_lerp_(mine, theirs, 1 - decay_at(step, self.decay))
