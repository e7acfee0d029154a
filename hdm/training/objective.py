"""What a denoiser learns: how a latent becomes noisy, what is predicted from it, and how errors
count.

Shapes: B batch, C channels, H W latent size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hdm.diffusion import flow_matching


class Objective(Protocol):
    """All of a training's objective. Draws use the given generator alone, so that resuming stays
    exact.
    """

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Times of so many samples, (count,) in [0, 1]."""
        ...

    def noisy(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the denoiser sees, (B, C, H, W)."""
        ...

    def target(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What it shall predict, (B, C, H, W)."""
        ...

    def losses(self, predicted: Tensor, target: Tensor, timestep: Tensor) -> Tensor:
        """The loss of each sample, as training counts it, (B,)."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """Rectified flow: the target is the velocity `noise - latent`.

    Args:
        timestep_shift: of the noise schedule; 1: none.
        contrastive_weight: λ of contrastive flow matching (`flow_matching.sample_losses`).
        min_snr_gamma: γ of min-SNR weights; None: every time counts the same.
    """

    timestep_shift: float = 1.0
    contrastive_weight: float = 0.0
    min_snr_gamma: float | None = None

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return flow_matching.draw_timesteps(count, generator, self.timestep_shift)

    def noisy(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return flow_matching.interpolate(latent, noise, timestep)

    def target(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return flow_matching.velocity(latent, noise)

    def losses(self, predicted: Tensor, target: Tensor, timestep: Tensor) -> Tensor:
        losses = flow_matching.sample_losses(predicted, target, self.contrastive_weight)
        if self.min_snr_gamma is None:
            return losses
        weights = flow_matching.min_snr_weights(timestep, self.min_snr_gamma, self.timestep_shift)
        return losses * weights
