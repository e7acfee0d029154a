"""Where each latent pixel lies in its picture: full maps, crops of them, camera moves, and the
patch grid.

A map is row-major (H·W, 2), float32, each row (y, x); the picture's centre is (0, 0). Kinds of
range:
box   the longer side spans [-1, 1], the shorter one [-short/long, short/long]
      (the published weights')
area  y spans ±√(H/W), x spans ±√(W/H), so that the area is always the same
      (arXiv 2509.06068, text)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hdm.errors import InputError

PositionKind = Literal["box", "area"]


@dataclass(frozen=True)
class Camera:
    """A move of the sampled picture's frame: `y` and `x` shift the positions, `zoom` divides them
    (2 is twice as close).
    """

    y: float = 0.0
    x: float = 0.0
    zoom: float = 1.0

    def __post_init__(self) -> None:
        if not self.zoom > 0:
            raise InputError(
                f"camera zoom {self.zoom} is not above 0",
                do="1 leaves the picture as it is, 2 goes closer",
            )

    def move(self, positions: Tensor) -> Tensor:
        """`(positions + (y, x)) / zoom`; any shape (..., 2)."""
        return (positions + positions.new_tensor([self.y, self.x])) / self.zoom


def full_map(height: int, width: int, kind: PositionKind = "box") -> Tensor:
    """Positions of all cell centres of a height × width grid, (height·width, 2)."""
    return crop_map(height, width, 0, 0, height, width, kind)


def crop_map(
    height: int,
    width: int,
    top: int,
    left: int,
    crop_height: int,
    crop_width: int | None = None,
    kind: PositionKind = "box",
) -> Tensor:
    """Positions that a crop keeps from the full picture's map (shifted square crop, arXiv
    2509.06068).

    Args:
        height, width: the full grid.
        top, left: the crop's first row and column.
        crop_height, crop_width: its size in cells; width None: a square.

    Returns:
        (crop_height·crop_width, 2).
    """
    crop_width = crop_height if crop_width is None else crop_width
    if not (
        0 <= top <= height - crop_height
        and 0 <= left <= width - crop_width
        and crop_height > 0
        and crop_width > 0
    ):
        raise InputError(
            f"a crop of {crop_height}×{crop_width} at ({top}, {left}) does not lie in a grid of"
            f" {height}×{width}"
        )
    # Cells are square in both kinds: with 2 / side as their side, the longer picture side or the
    # picture's area is that of [-1, 1].
    side = max(height, width) if kind == "box" else (height * width) ** 0.5
    y = _centres(height, side)[top : top + crop_height]
    x = _centres(width, side)[left : left + crop_width]
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)


def _centres(count: int, side: float) -> Tensor:
    # float64, rounded once: a map does not depend on the order of its arithmetic.
    return ((torch.arange(count, dtype=torch.float64) * 2 + 1 - count) / side).float()


def to_patch_grid(positions: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Bring a map on the latent grid to the grid of patches, by bilinear interpolation with
    antialiasing.

    Args:
        positions: (height·width, 2) or (B, height·width, 2).

    Returns:
        (h·w, 2) or (B, h·w, 2) with h = height / patch_size, w = width / patch_size.
    """
    if height % patch_size or width % patch_size:
        raise InputError(
            f"a grid of {height}×{width} cannot be cut into patches of {patch_size}",
            do=f"use multiples of {patch_size}",
        )
    if patch_size == 1:
        return positions
    # Interpolation takes (B, 2, H, W), a picture with y and x as channels.
    planes = positions.reshape(-1, height, width, 2).permute(0, 3, 1, 2).float()
    small = F.interpolate(
        planes, (height // patch_size, width // patch_size), mode="bilinear", antialias=True
    )
    return small.flatten(2).transpose(1, 2).reshape(*positions.shape[:-2], -1, 2)
