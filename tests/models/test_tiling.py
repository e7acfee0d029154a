"""Tiles against the whole, for networks whose reach is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from hdm.models.tiling import spans, tiled

PICTURE = torch.randn(2, 3, 88, 136, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(11, 4, 1), (17, 16, 4), (64, 16, 4), (5, 8, 2), (33, 4, 3)]
)
def test_tiles_cover_a_side_and_overlap(length: int, tile: int, overlap: int) -> None:
    found = spans(length, tile, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(end - start == min(tile, length) for start, end in found)
    assert all(before[1] - after[0] >= overlap for before, after in pairwise(found))


def test_a_network_that_looks_at_one_cell_is_the_same_in_tiles() -> None:
    down = tiled(lambda part: F.avg_pool2d(part, 8), PICTURE, 4, 1, cell_in=8, cell_out=1)
    torch.testing.assert_close(down, F.avg_pool2d(PICTURE, 8))
    up = tiled(lambda part: F.interpolate(part, scale_factor=8), down, 4, 1, cell_in=1, cell_out=8)
    torch.testing.assert_close(up, F.interpolate(down, scale_factor=8))


def test_a_network_with_some_reach_differs_near_the_tiles_edges_alone() -> None:
    """It differs less where the tiles overlap more."""
    kernel = torch.ones(3, 3, 9, 9) / 243

    def blur(part: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.conv2d(part, kernel, padding=4), 8)

    whole = blur(PICTURE)
    errors = [
        (tiled(blur, PICTURE, 6, overlap, 8, 1) - whole).abs().mean().item() for overlap in (1, 3)
    ]
    assert 0 < errors[1] < errors[0]
    inside = tiled(blur, PICTURE, 6, 2, 8, 1)[..., :1, :1] - whole[..., :1, :1]
    assert inside.abs().max() < 1e-6


def test_what_fits_is_not_cut() -> None:
    asked = []
    tiled(lambda part: asked.append(part.shape) or part, PICTURE, 17, 4, 8, 8)  # type: ignore[func-returns-value]
    assert asked == [PICTURE.shape]
