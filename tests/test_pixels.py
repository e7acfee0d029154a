"""The one conversion between pictures of 8 bits and images of floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hdm.pixels import to_image, to_pixels

LEVELS = np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3)


def test_every_level_comes_back() -> None:
    batch = np.stack([LEVELS, LEVELS[::-1]])
    image = to_image(batch)
    assert image.shape == (2, 3, 16, 16)
    assert image.dtype == torch.float32
    assert np.array_equal(to_pixels(image), batch)
    assert np.array_equal(to_pixels(to_image(LEVELS)), LEVELS)


def test_levels_are_spread_evenly_from_black_to_white() -> None:
    exact = LEVELS.transpose(2, 0, 1) / 255 * 2 - 1
    image = to_image(torch.from_numpy(LEVELS)).numpy()
    assert image.min() == -1
    assert image.max() == 1
    assert np.abs(image - exact).max() < 1e-6


def test_values_between_levels_go_to_the_nearest() -> None:
    level = np.random.default_rng(0).uniform(0, 255, (3, 50, 50))
    image = torch.from_numpy(level / 127.5 - 1).float()
    off = np.abs(to_pixels(image).transpose(2, 0, 1) - level)
    assert off.max() < 0.5 + 1e-4


@pytest.mark.parametrize(("value", "level"), [(-3.0, 0), (-1.01, 0), (1.01, 255), (3.0, 255)])
def test_what_lies_outside_is_the_nearest_end(value: float, level: int) -> None:
    assert (to_pixels(torch.full((3, 2, 2), value)) == level).all()


def test_images_of_16_bits_are_converted_in_32() -> None:
    image = torch.linspace(-1, 1, 300).view(3, 10, 10).bfloat16()
    assert np.array_equal(to_pixels(image), to_pixels(image.float()))
