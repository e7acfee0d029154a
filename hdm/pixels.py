"""Between pictures of 8 bits and images of floats: the one conversion each way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HALF_RANGE = 127.5
"""Levels from the middle of the range to either end: 0 is -1, 255 is 1."""


def to_image(pixels: np.ndarray | Tensor) -> Tensor:
    """(…, H, W, 3) uint8 → (…, 3, H, W) float32 in [-1, 1], on the device of the pixels.

    The channels stay last in memory, where convolutions are fastest.
    """
    return torch.as_tensor(pixels).movedim(-1, -3).float() / HALF_RANGE - 1


def to_pixels(image: Tensor) -> np.ndarray:
    """(…, 3, H, W) in [-1, 1] → (…, H, W, 3) uint8, rounded to the nearest level (halves to even).

    What lies outside becomes the nearest end of the range.
    """
    levels = ((image.float() + 1) * HALF_RANGE).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1).cpu().numpy()
