"""Equivariance of an autoencoder: a scaled or rotated latent decodes to the scaled or rotated
picture (EQ-VAE, arXiv 2502.09509).

Shapes: B batch, C channels, h w latent size, H W picture size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hdm.models.autoencoder import Autoencoder

SMALLEST_SIDE = 2  # of a scaled latent


@dataclass(frozen=True)
class Transform:
    """A scaling followed by a rotation, applicable to a latent and to its picture.

    Args:
        scale: of both sides, in (0, 1].
        turns: quarter turns, counter-clockwise.
    """

    scale: float
    turns: int

    def both(self, raw: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The latent (B, C, h, w) and its picture (B, 3, H, W), transformed alike; the picture
        stays h/w times the latent's size.
        """
        factor = image.shape[-1] // raw.shape[-1]
        # The latent's size is rounded to whole positions, and the picture's follows from it.
        size = [max(SMALLEST_SIDE, round(side * self.scale)) for side in raw.shape[-2:]]
        small = _resized(raw, size)
        # Bicubic interpolation overshoots at edges.
        target = _resized(image, [side * factor for side in size]).clamp(-1, 1)
        return torch.rot90(small, self.turns, (2, 3)), torch.rot90(target, self.turns, (2, 3))


def _resized(values: Tensor, size: list[int]) -> Tensor:
    # Nothing is resampled at scale 1, so pure rotations are exact.
    if list(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size, mode="bicubic", antialias=True, align_corners=False)


def draw_transform(
    rng: np.random.Generator, scales: tuple[float, float] = (0.25, 1.0)
) -> Transform:
    """A random transform: the scale uniform in [low, high), the rotation uniform (EQ-VAE, section
    3.2).
    """
    return Transform(float(rng.uniform(*scales)), int(rng.integers(4)))


MEASURED = tuple(
    Transform(scale, turns)
    for scale in (0.25, 0.5, 0.75, 1.0)
    for turns in range(4)
    if (scale, turns) != (1.0, 0)
)
"""The transforms over which errors are measured."""


def equivariance_errors(
    autoencoder: Autoencoder, image: Tensor, transforms: Sequence[Transform] = MEASURED
) -> dict[str, float]:
    """An autoencoder's equivariance errors over pictures and transforms.

    Args:
        image: (B, 3, H, W) in [-1, 1].

    Returns:
        decoded: root mean square of decode(τ encode(x)) - τ x, in [0, 2]; reconstructed: the same
            without τ, for comparison;
        latent: ‖encode(τ x) - τ encode(x)‖ / ‖encode(τ x)‖ of normalised latents, 0 where it
            commutes.
    """
    image = image.to(autoencoder.device)
    raw = autoencoder.encode(image)
    decoded, latent = [], []
    for transform in transforms:
        moved, target = transform.both(raw, image)
        decoded.append((autoencoder.decode(moved) - target).square().mean())
        wanted = autoencoder.normalize(autoencoder.encode(target))
        computed = autoencoder.normalize(moved)
        latent.append((computed - wanted).norm() / wanted.norm())
    plain = (autoencoder.decode(raw) - image).square().mean()
    return {
        "decoded": torch.stack(decoded).mean().sqrt().item(),
        "reconstructed": plain.sqrt().item(),
        "latent": torch.stack(latent).mean().item(),
    }
