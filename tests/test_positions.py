from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hdm.errors import InputError
from hdm.positions import Camera, crop_map, full_map, to_patch_grid

GOLDEN = Path(__file__).parents[2] / "shared/golden/position_maps.safetensors"


def test_maps_and_crops_equal_the_published_ones():
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN} is not here")
    for name, wanted in load_file(GOLDEN).items():
        kind, *numbers = name.split(".")
        if kind == "full":
            height, width = map(int, numbers)
            ours = full_map(height, width)
        else:
            top, left, height, width = map(int, numbers)
            ours = crop_map(height, width, top, left, min(height, width))
        torch.testing.assert_close(
            ours, wanted, rtol=0, atol=6e-8
        )  # one unit in the last place of 1


@pytest.mark.parametrize(("height", "width"), [(6, 10), (10, 6), (5, 5), (1, 7)])
def test_a_box_is_bounded_by_the_longer_side_and_an_area_by_the_product(height, width):
    def edges(kind):
        """Distances from the centre to the picture's edges: half a cell beyond the outermost
        centres.
        """
        y, x = full_map(height, width, kind).view(height, width, 2).double().unbind(-1)
        cell = (x[0, 1] - x[0, 0]).item()
        return y.max().item() + cell / 2, x.max().item() + cell / 2

    assert edges("box") == pytest.approx(
        (height / max(height, width), width / max(height, width)), abs=1e-6
    )
    r_h, r_w = edges("area")
    assert r_h * r_w == pytest.approx(1, abs=1e-5)
    assert r_h / r_w == pytest.approx(height / width, rel=1e-5)


@pytest.mark.parametrize("kind", ["box", "area"])
def test_a_crop_keeps_the_positions_it_has_in_the_picture(kind):
    full = full_map(9, 14, kind).view(9, 14, 2)
    crop = crop_map(9, 14, 2, 5, 4, 6, kind).view(4, 6, 2)
    assert torch.equal(crop, full[2:6, 5:11])
    with pytest.raises(InputError, match="does not lie in"):
        crop_map(9, 14, 6, 5, 4)


def test_the_camera_shifts_then_zooms():
    positions = full_map(4, 6)
    moved = Camera(y=0.25, x=-0.5, zoom=2).move(positions)
    torch.testing.assert_close(
        moved, torch.stack(((positions[:, 0] + 0.25) / 2, (positions[:, 1] - 0.5) / 2), 1)
    )
    with pytest.raises(InputError, match="zoom"):
        Camera(zoom=0)


def test_the_patch_grid_is_an_antialiased_bilinear_resize():
    def halved(line):
        """Triangle of half-width 2 (the patch) about each patch's centre, weights brought to sum
        1.
        """
        centres = np.arange(len(line)) + 0.5
        weights = np.maximum(
            0, 1 - np.abs(centres - (2 * np.arange(len(line) // 2)[:, None] + 1)) / 2
        )
        return (weights / weights.sum(1, keepdims=True)) @ line

    positions = crop_map(10, 16, 0, 3, 8)
    grid = positions.view(8, 8, 2).double().numpy()
    wanted = np.stack(
        np.meshgrid(halved(grid[:, 0, 0]), halved(grid[0, :, 1]), indexing="ij"), -1
    ).reshape(-1, 2)
    ours = to_patch_grid(positions, 8, 8, 2)
    np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-6)
    both = to_patch_grid(torch.stack((positions, positions + 1)), 8, 8, 2)
    torch.testing.assert_close(both[0], ours)
    torch.testing.assert_close(both[1], ours + 1)
    with pytest.raises(InputError, match="patches of 3"):
        to_patch_grid(positions, 8, 8, 3)
