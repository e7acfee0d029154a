"""Measure an autoencoder: how well it reconstructs pictures, and how equivariant its latents are.

Shapes: B batch, H W picture size; pictures (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hdm.distances.frechet import frechet_distance
from hdm.models.autoencoder import Autoencoder
from hdm.models.equivariance import equivariance_errors
from hdm.pixels import to_image, to_pixels
from hdm.progress import track
from hdm.vae.squares import middle_square

Features = Callable[[list[np.ndarray]], np.ndarray]
"""Pictures (H, W, 3) uint8 → features (N, E)."""

BATCH = 16
# SSIM's window and constants (Wang et al. 2004), for values in [0, 1].
SIGMA = 1.5
RADIUS = 5
C1 = 0.01**2
C2 = 0.03**2


def psnr(decoded: Tensor, image: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, in dB, at most 100: (B,)."""
    error = (decoded - image).square().flatten(1).mean(1) / 4  # of values in [0, 1]
    # The clamp limits the result to 100 dB, since identical pictures would give infinity.
    return -10 * error.clamp(min=1e-10).log10()


def ssim(decoded: Tensor, image: Tensor) -> Tensor:
    """Structural similarity of each picture (Wang et al. 2004: Gaussian window of 11 px, σ 1.5,
    whole windows alone): (B,), at most 1.
    """
    window = torch.exp(
        -(torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64) ** 2) / (2 * SIGMA**2)
    )
    window = (window / window.sum()).to(image.device)
    kernel = torch.outer(window, window).expand(3, 1, -1, -1)

    def local(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=3)

    # The variances below are differences of nearly equal squares, which float32 would round away.
    x = (decoded.double() + 1) / 2
    y = (image.double() + 1) / 2
    mean_x = local(x)
    mean_y = local(y)
    variance_x = local(x * x) - mean_x**2
    variance_y = local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    similar = (
        (2 * mean_x * mean_y + C1)
        * (2 * covariance + C2)
        / ((mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2))
    )
    return similar.flatten(1).mean(1)


def measure_quality(
    autoencoder: Autoencoder,
    pictures: Sequence[np.ndarray],
    size_px: int,
    features: Features | None = None,
) -> dict[str, float]:
    """Reconstruction and equivariance over the middle squares of pictures that training has not
    seen.

    Args:
        autoencoder: with its statistics, in whose units errors of latents are given.
        pictures: (H, W, 3) uint8 each.
        size_px: side of the squares; a multiple of the autoencoder's downscale.
        features: features for the Fréchet distance; None: it is left out.

    Returns:
        psnr_db and ssim, means over pictures; equivariance_decoded, equivariance_latent and
        reconstructed as in `equivariance_errors`; frechet_distance between the pictures and their
        reconstructions (FID's formula with the given features, which are not FID's).
    """
    totals: dict[str, float] = {}
    real = []
    reconstructed = []
    with track("measuring", len(pictures), "images") as bar:
        for start in range(0, len(pictures), BATCH):
            squares = [middle_square(one, size_px) for one in pictures[start : start + BATCH]]
            image = to_image(np.stack(squares)).to(autoencoder.device)
            decoded = autoencoder.decode(autoencoder.encode(image))
            errors = equivariance_errors(autoencoder, image)
            # Root mean squares are summed as squares; their roots are taken at the end.
            values = {
                "psnr_db": psnr(decoded, image).mean().item(),
                "ssim": ssim(decoded, image).mean().item(),
                "reconstructed": errors["reconstructed"] ** 2,
                "equivariance_decoded": errors["decoded"] ** 2,
                "equivariance_latent": errors["latent"],
            }
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value * len(image) / len(pictures)
            # Pictures are kept, since the feature model has its own preprocessing.
            real += squares
            reconstructed += list(to_pixels(decoded))
            bar.advance(len(image))
    for name in ("reconstructed", "equivariance_decoded"):
        totals[name] = math.sqrt(totals[name])
    if features is not None and len(real) > 1:
        totals["frechet_distance"] = frechet_distance(
            _embedded(features, real), _embedded(features, reconstructed)
        )
    return {name: round(value, 5) for name, value in totals.items()}


def _embedded(features: Features, pictures: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(
        [features(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
    )
