"""Pictures in memory with their captions, on which the small components are trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """One picture (H, W, 3) uint8 and its captions, if it has any."""

    captions: tuple[str, ...]
    pixels: np.ndarray
