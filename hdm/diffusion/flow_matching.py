"""Flow matching on straight paths: x_t = t·noise + (1-t)·latent, velocity dx/dt = noise - latent
(arXiv 2209.03003, 2210.02747).

All functions are plain arithmetic on tensors of shape (B, …); the timestep t is (B,), 1 is pure
noise.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hdm.errors import InputError


def draw_timesteps(
    batch: int,
    generator: torch.Generator | None = None,
    shift: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw logit-normal times, t = sigmoid(N(0, 1)) (arXiv 2403.03206, section 3.1), then shift
    them.

    Args:
        generator: source of the draw, on its own device; None: torch's default.
        shift: see `shift_timesteps`; 1 leaves them.

    Returns:
        (batch,) float32 in (0, 1) on `device`.
    """
    # The generator's device draws, so that a seed gives the same times wherever the model runs.
    source = generator.device if generator is not None else device
    normal = torch.randn(batch, generator=generator, device=source)
    return shift_timesteps(normal.sigmoid(), shift).to(device)


def shift_timesteps(timestep: Tensor, shift: float) -> Tensor:
    """Move times towards noise: s·t / (1 + (s-1)·t), which keeps 0 and 1 (arXiv 2403.03206,
    equation 23).
    """
    if not shift > 0:
        raise InputError(
            f"timestep shift {shift} is not above 0", do="1 is no shift, about 3 suits 1024 px"
        )
    return timestep if shift == 1 else shift * timestep / (1 + (shift - 1) * timestep)


def interpolate(latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """The noisy latent t·noise + (1-t)·latent."""
    # (B,) → (B, 1, …), to broadcast over whatever follows.
    t = timestep.view(-1, *[1] * (latent.ndim - 1))
    return t * noise + (1 - t) * latent


def velocity(latent: Tensor, noise: Tensor) -> Tensor:
    """What the model learns to predict: noise - latent."""
    return noise - latent


def sample_losses(predicted: Tensor, wanted: Tensor, contrastive_weight: float = 0.0) -> Tensor:
    """Mean squared error of each sample, less a share of its distance to another sample's velocity.

    Args:
        predicted: velocities (B, …) of the model.
        wanted: the true velocities, of the same shape.
        contrastive_weight: λ of contrastive flow matching (arXiv 2506.05350, equation 5), 0.05
            there; 0 is plain flow matching.

    Returns:
        (B,) float32; with a weight it may be negative.
    """
    # Errors are squared in float32 even if the model computes in 16 bits.
    predicted = predicted.float()
    wanted = wanted.float()
    losses = (predicted - wanted).square().flatten(1).mean(1)
    return (
        losses - contrastive_weight * neighbour_distances(predicted, wanted)
        if contrastive_weight
        else losses
    )


def neighbour_distances(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared distance of each prediction to the velocity of its neighbour, the other one of
    samples 2i and 2i + 1.

    Neighbours rather than a permutation of the batch: cut into parts of even length, a batch keeps
    its pairs.

    Returns:
        (B,); 0 for the last of an odd number, which has no neighbour.
    """
    # The last sample of an odd batch has no neighbour.
    paired = len(wanted) // 2 * 2
    other = wanted[:paired].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    distances = (predicted[:paired] - other).square().flatten(1).mean(1)
    return torch.cat((distances, distances.new_zeros(len(wanted) - paired)))


def min_snr_weights(timestep: Tensor, gamma: float, shift: float = 1.0) -> Tensor:
    """How much each time's loss counts, so that times of little noise, which are easy, do not have
    the most of it (arXiv 2303.09556).

    There the error of the predicted latent is weighed by min(SNR, γ). Here SNR = ((1-t)/t)², and
    since latent = x_t - t·velocity, that error is t times the velocity's: its squared loss gets
    min(SNR, γ)·t² = min((1-t)², γ·t²), divided by the mean over the times that `draw_timesteps`
    draws, so that the rates of plain flow matching still suit.

    Args:
        timestep: (B,) in [0, 1].
        gamma: γ, 5 in the paper.
        shift: with which the times are drawn.

    Returns:
        (B,) float32, 1 on average; least at both ends, most at t = 1 / (1 + √γ).
    """
    return _min_snr(timestep.float(), gamma) / _mean_min_snr(gamma, shift)


def _min_snr(timestep: Tensor, gamma: float) -> Tensor:
    return torch.minimum((1 - timestep).square(), gamma * timestep.square())


@lru_cache
def _mean_min_snr(gamma: float, shift: float) -> float:
    # Evenly spaced quantiles, unlike draws, give the same factor in every process and run.
    quantiles = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    return float(
        _min_snr(shift_timesteps(torch.special.ndtri(quantiles).sigmoid(), shift), gamma).mean()
    )


def losses_by_time(losses: Tensor, timestep: Tensor, num_bins: int = 10) -> tuple[Tensor, Tensor]:
    """Sort losses into equal bins of time, for the logs; sums and counts add up over steps and
    processes.

    Args:
        losses: (B,), of each sample.
        timestep: (B,), in 0…1.

    Returns:
        Sum of losses and number of samples in each bin, both (num_bins,) of the losses' type; bin i
        holds t in [i, i+1) / num_bins.
    """
    losses = losses.detach()
    # t = 1 belongs to the last bin.
    bins = (timestep * num_bins).long().clamp(0, num_bins - 1)
    sums = losses.new_zeros(num_bins)
    counts = losses.new_zeros(num_bins)
    return sums.index_add_(0, bins, losses), counts.index_add_(0, bins, torch.ones_like(losses))
