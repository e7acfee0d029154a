"""Square crops of pictures, on which autoencoders and contrastive models are trained."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized(pixels: np.ndarray, size_px: int, enlarge: bool = True) -> np.ndarray:
    """The picture resized to a shorter side of `size_px`; smaller ones only if `enlarge`."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter == size_px or (shorter < size_px and not enlarge):
        return pixels
    # Rounding must not make the shorter side a pixel too short for the crop.
    size = (
        max(size_px, round(width * size_px / shorter)),
        max(size_px, round(height * size_px / shorter)),
    )
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def random_square(pixels: np.ndarray, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """A random square crop with this side."""
    height, width = pixels.shape[:2]
    top = int(rng.integers(height - size_px + 1))
    left = int(rng.integers(width - size_px + 1))
    return pixels[top : top + size_px, left : left + size_px]


def middle_square(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """The middle square of the picture, resized to this side."""
    pixels = resized(pixels, size_px)
    height, width = pixels.shape[:2]
    top = (height - size_px) // 2
    left = (width - size_px) // 2
    return pixels[top : top + size_px, left : left + size_px]
