"""Applies a convolutional network to a picture that does not fit in memory, in tiles that are
blended where they overlap.

Shapes: a grid of cells; a cell is one latent pixel, `downscale` picture pixels each way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor


def tiled(
    apply: Callable[[Tensor], Tensor],
    source: Tensor,
    tile: int,
    overlap: int,
    cell_in: int,
    cell_out: int,
) -> Tensor:
    """The result of `apply` for the whole, blended from tiles with weights that fall linearly to
    each tile's edge.

    Args:
        apply: (B, C, h·cell_in, w·cell_in) → (B, C', h·cell_out, w·cell_out), the same network for
            any h and w.
        source: (B, C, H·cell_in, W·cell_in).
        tile: side of a tile in cells.
        overlap: of neighbouring tiles in cells, at least; below tile.
        cell_in, cell_out: side of a cell in pixels of the input and of the output.

    Returns:
        (B, C', H·cell_out, W·cell_out).
    """
    rows = source.shape[-2] // cell_in
    columns = source.shape[-1] // cell_in
    if rows <= tile and columns <= tile:
        return apply(source)
    total: Tensor | None = None
    weights = source.new_zeros(rows * cell_out, columns * cell_out)
    # Results are added up in place, so the network needs memory for one tile at a time.
    for (top, bottom), (left, right) in product(
        spans(rows, tile, overlap), spans(columns, tile, overlap)
    ):
        part = apply(
            source[..., top * cell_in : bottom * cell_in, left * cell_in : right * cell_in]
        )
        if total is None:
            total = part.new_zeros(*part.shape[:2], *weights.shape)
        down = _ramp((bottom - top) * cell_out, overlap * cell_out).to(part)
        across = _ramp((right - left) * cell_out, overlap * cell_out).to(part)
        weight = torch.outer(down, across)
        place = (slice(top * cell_out, bottom * cell_out), slice(left * cell_out, right * cell_out))
        total[..., place[0], place[1]] += part * weight
        weights[place] += weight
    assert total is not None
    # The weights of overlapping tiles need not add up to 1.
    return total / weights


def spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end of the tiles along one side: all of them `tile` long, evenly spread, neighbours
    sharing `overlap` cells or more.
    """
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [number * (length - tile) // (count - 1) for number in range(count)]
    return [(start, start + tile) for start in starts]


def _ramp(size: int, overlap: int) -> Tensor:
    """1 in the middle, falling to each end over `overlap` pixels."""
    # Counting from the centres of pixels, no weight is 0.
    place = torch.arange(size) + 0.5
    return torch.minimum(place, size - place).clamp(max=max(overlap, 1)) / max(overlap, 1)
