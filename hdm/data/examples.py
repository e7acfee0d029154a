"""Captioned pictures in memory, as `hdm.bootstrap` learns from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """One picture (H, W, 3) uint8 and its captions; at least one."""

    captions: tuple[str, ...]
    pixels: np.ndarray
