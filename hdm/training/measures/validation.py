"""Losses at fixed pictures, fixed noise and fixed timesteps: comparable from step to step and from
run to run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hdm.data.loader import Loader
from hdm.diffusion.flow_matching import losses_by_time, sample_losses
from hdm.generation.conditioning import Conditioning
from hdm.training.objective import Objective
from hdm.training.prefetcher import VALIDATION, generator
from hdm.training.process.ranks import Ranks

NUM_IMAGES = 256  # so that the loss of one step compares with that of another
BATCH_SIZE = 64
TIME_BINS = 5  # looked at in their middles: 0.1, 0.3, 0.5, 0.7, 0.9


@dataclass(frozen=True)
class Losses:
    """Of some pictures.

    Args:
        by_time: the mean loss at each of five timesteps, from little noise to much; empty without
            pictures.
        of_nothing: what the mean of these would be if no velocity at all were predicted.
    """

    by_time: tuple[float, ...]
    of_nothing: float

    @property
    def mean(self) -> float:
        return sum(self.by_time) / TIME_BINS

    def held_out(self) -> dict[str, Any]:
        """What the metrics tell of held-out pictures: `validation_loss` and
        `validation_loss_by_time`, where one that is not finite is None; {} without pictures."""
        if not self.by_time:
            return {}
        return {
            "validation_loss": _finite(self.mean),
            "validation_loss_by_time": [_finite(loss) for loss in self.by_time],
        }


@dataclass(frozen=True)
class Measurement:
    """How losses are measured in a training; arguments as for `measure`."""

    conditioning: Conditioning
    objective: Objective
    ranks: Ranks
    seed: int

    def losses(
        self, model: nn.Module, loader: Loader, num_images: int = NUM_IMAGES
    ) -> Losses | None:
        """Of a model in evaluation mode; None if a signal cut it short."""
        return measure(
            model,
            loader,
            self.conditioning,
            self.objective,
            self.ranks.accelerator.autocast,
            self.seed,
            self.ranks.interrupted,
            num_images,
        )


@torch.no_grad()
def measure(
    model: nn.Module,
    loader: Loader,
    conditioning: Conditioning,
    objective: Objective,
    autocast: Callable[[], AbstractContextManager[Any]],
    seed: int,
    cut_short: Callable[[], bool],
    num_images: int = NUM_IMAGES,
) -> Losses | None:
    """The losses of a model.

    Args:
        model: in evaluation mode, on the conditioning's device.
        loader: of a split, without dropout; the first `num_images` of its pictures are looked at.
        conditioning: of its captions.
        objective: what the model predicts; every time counts the same, whatever its weights.
        autocast: the context of a forward pass.
        seed: of the noise.
        cut_short: asked before each batch whether to give up.
        num_images: at most so many pictures.

    Returns:
        The losses; None if it was cut short.
    """
    count = min(len(loader), num_images)
    sums = torch.zeros(TIME_BINS, dtype=torch.float64)
    of_nothing = 0.0
    for start in range(0, count, loader.batch_size):
        if cut_short():
            return None
        # The last batch goes on into the next epoch: cut.
        batch = loader.batch(start).part(0, count - start).to(conditioning.device)
        # The seed depends on the position alone, so the noise of a batch does not depend on those
        # before it.
        noise = torch.randn(batch.latent.shape, generator=generator(seed, VALIDATION, start)).to(
            conditioning.device
        )
        # All timesteps use the same pictures and noise, so that they differ by the time alone.
        for place in range(TIME_BINS):
            timestep = torch.full(
                (len(batch),), (place + 0.5) / TIME_BINS, device=conditioning.device
            )
            target = objective.target(batch.latent, noise, timestep)
            # Weights of the objective do not apply here, so that losses of different trainings
            # compare.
            nothing = sample_losses(torch.zeros_like(target), target)
            of_nothing += nothing.double().sum().item() / TIME_BINS
            with autocast():
                predicted: Tensor = model(
                    objective.noisy(batch.latent, noise, timestep),
                    timestep,
                    conditioning.of_batch(batch),
                    positions=batch.positions,
                    log_aspect=batch.log_aspect,
                    text_mask=batch.text_mask,
                )
            sums += losses_by_time(
                sample_losses(predicted, target).double().cpu(), timestep.cpu(), TIME_BINS
            )[0]
    if not count:
        return Losses((), 0.0)
    return Losses(tuple((sums / count).tolist()), of_nothing / count)


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None  # JSON has no NaN
