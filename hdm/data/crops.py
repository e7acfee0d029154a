"""Pictures of any size to batches of squares, as autoencoders and contrastive models are trained on
them.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resized(pixels: np.ndarray, size_px: int, enlarge: bool = True) -> np.ndarray:
    """The picture with a shorter side of `size_px`; a smaller one is left alone unless
    `enlarge`.
    """
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter == size_px or (shorter < size_px and not enlarge):
        return pixels
    size = (
        max(size_px, round(width * size_px / shorter)),
        max(size_px, round(height * size_px / shorter)),
    )
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def random_square(pixels: np.ndarray, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """A square of that side, anywhere in the picture."""
    top, left = (int(rng.integers(side - size_px + 1)) for side in pixels.shape[:2])
    return pixels[top : top + size_px, left : left + size_px]


def middle_square(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """The square of that side in the picture's middle, its shorter side brought to it first."""
    pixels = resized(pixels, size_px)
    top, left = ((side - size_px) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size_px, left : left + size_px]


def as_image(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pixels(image: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] → (B, H, W, 3) uint8."""
    return (
        ((image.permute(0, 2, 3, 1) + 1) * 127.5)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        .cpu()
        .numpy()
    )
