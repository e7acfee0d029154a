"""The cost of cropping latents: nothing for a network that looks at its own cell, at the cut alone
for one of known reach.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hdm.encoding.crops import BORDER, crop_error
from hdm.models.autoencoder import Autoencoder

MULTIPLE = 8


class Filter:
    """A linear encoder of downscale 4 in the place of a diffusers model."""

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        self.config = {"block_out_channels": (1, 1, 1)}
        self.config = type("Config", (dict,), {"latent_channels": 3})(self.config)
        self.apply = encode

    def encode(self, image: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent=self.apply(image))


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    return [
        torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(size[0])) for size in sizes
    ]


def error_of(encode: Callable[[Tensor], Tensor], *sizes: tuple[int, int]):
    return crop_error(
        Autoencoder(Filter(encode), [0.0] * 3, [1.0] * 3, "cpu"), images(*sizes), MULTIPLE
    )


def blurred(image: Tensor, reach: int) -> Tensor:
    """Averages over `reach` cells to each side, zeros beyond the picture."""
    cells = F.avg_pool2d(image, 4)
    kernel = torch.ones(3, 1, 2 * reach + 1, 2 * reach + 1) / (2 * reach + 1) ** 2
    return F.conv2d(cells, kernel, padding=reach, groups=3)


def test_a_network_that_looks_at_one_cell_loses_nothing() -> None:
    found = error_of(lambda image: F.avg_pool2d(image, 4), (64, 96), (128, 64))
    assert (found.interior, found.border) == (0, 0)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 128)])
def test_the_error_lies_within_the_networks_reach_of_the_cut(size: tuple[int, int]) -> None:
    within, beyond = (
        error_of(lambda image: blurred(image, BORDER), size),
        error_of(lambda image: blurred(image, BORDER + 1), size),
    )
    assert within.interior < 1e-6
    assert within.border > 0.1
    assert beyond.interior > 1e-3


def scaled_blur(by: float, image: torch.Tensor) -> torch.Tensor:
    return by * blurred(image, 2) + by


def test_it_is_measured_in_standard_deviations_and_so_whatever_the_scale() -> None:
    one, ten = (error_of(partial(scaled_blur, by), (64, 96)) for by in (1, 10))
    assert ten.border == pytest.approx(one.border, rel=1e-5)
    # The padding's zeros stand for what was cut off. White noise averaged over n = 25 cells has 1/n
    # of its variance; at the cut 2 and then 1 of 5 columns are missing, which is 10/625 and 5/625
    # of the noise's variance, 0.3 of the average's own on average.
    large = error_of(lambda image: blurred(image, 2), (512, 768))
    assert large.border == pytest.approx(0.3**0.5, rel=0.1)


def test_squares_and_pictures_that_are_all_border_tell_nothing() -> None:
    assert error_of(lambda image: F.avg_pool2d(image, 4), (64, 64)) is None
    assert error_of(lambda image: F.avg_pool2d(image, 4), (8, 24)) is None
    assert (
        crop_error(
            Autoencoder(Filter(lambda image: image), [0.0] * 3, [1.0] * 3, "cpu"), [], MULTIPLE
        )
        is None
    )
