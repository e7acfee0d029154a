"""Figures of reconstruction against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from hdm.distances.frechet import frechet_distance
from hdm.models.autoencoder import of_model
from hdm.vae.reconstruction import measure_quality, psnr, ssim
from tests.vae.conftest import every_class


def pair(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures (24, 30, 3) in [0, 255]."""
    rng = np.random.default_rng(0)
    first = gaussian_filter(rng.uniform(0, 255, (24, 30, 3)), (2, 2, 0)).clip(0, 255)
    return first, (first + rng.normal(0, noise, first.shape)).clip(0, 255)


def image(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, in grey levels, window by window."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for channel in range(3):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                a, b = (v[top : top + 11, left : left + 11, channel] for v in (x, y))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb, vab = (
                    (window * (a - ma) ** 2).sum(),
                    (window * (b - mb) ** 2).sum(),
                    (window * (a - ma) * (b - mb)).sum(),
                )
                found.append(
                    (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
                )
    return float(np.mean(found))


def test_structural_similarity_window_by_window() -> None:
    first, second = pair(20)
    assert ssim(image(first), image(second)).item() == pytest.approx(
        naive_ssim(first, second), rel=1e-6
    )
    assert ssim(image(first), image(first)).item() == pytest.approx(1)


def test_psnr_in_grey_levels() -> None:
    first, second = pair(9)
    assert psnr(image(first), image(second)).item() == pytest.approx(
        10 * np.log10(255**2 / ((first - second) ** 2).mean())
    )


def test_quality_over_batches_is_that_over_all_pictures(scenes: list[np.ndarray]) -> None:
    autoencoder = of_model(every_class()["AutoencoderKL"].eval(), "cpu")
    shown: list[list[np.ndarray]] = []

    def colours(pictures: list[np.ndarray]) -> np.ndarray:
        shown.append(pictures)
        return np.stack([picture.mean((0, 1)) for picture in pictures])

    found = measure_quality(autoencoder, scenes[:20], 32, colours)
    seen = [picture for batch in shown for picture in batch]
    real, back = np.stack(seen[:20]).astype(float), np.stack(seen[20:]).astype(float)
    error = ((real - back) ** 2).mean((1, 2, 3))
    assert found["psnr_db"] == pytest.approx((10 * np.log10(255**2 / error)).mean(), abs=0.02)
    assert found["reconstructed"] == pytest.approx(np.sqrt(error.mean()) / 127.5, abs=2e-3)
    assert found["frechet_distance"] == pytest.approx(
        frechet_distance(real.mean((1, 2)), back.mean((1, 2))), rel=1e-3
    )
