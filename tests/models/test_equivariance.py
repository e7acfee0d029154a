"""Transforms of latents and pictures, and errors of autoencoders whose equivariance is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

from hdm.demo.scenes import draw, make_scene
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.models.components import resolve
from hdm.models.equivariance import MEASURED, Transform, draw_transform, equivariance_errors
from hdm.models.settings import Components


class Averaging:
    """Encodes each 2×2 patch as its mean colour and decodes it as that colour; `skew` adds a ramp
    that turns do not carry along.
    """

    def __init__(self, skew: float) -> None:
        self.skew, self.config = skew, FrozenDict(latent_channels=3, block_out_channels=(1, 1))

    def _ramp(self, like: Tensor) -> Tensor:
        return self.skew * torch.linspace(-1, 1, like.shape[-1]).expand(like.shape[-2:])

    def encode(self, image: Tensor) -> SimpleNamespace:
        raw = F.avg_pool2d(image, 2)
        return SimpleNamespace(latent=raw + self._ramp(raw))

    def decode(self, raw: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=F.interpolate(raw - self._ramp(raw), scale_factor=2.0))


def smooth(side: int = 32) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    return torch.stack([x, y, x * y])[None] * 0.8


def wrapped(skew: float) -> Autoencoder:
    return Autoencoder(Averaging(skew), [0.0] * 3, [1.0] * 3, "cpu")


def test_picture_and_latent_are_turned_and_scaled_alike() -> None:
    image = torch.zeros(1, 3, 32, 48)
    image[:, :, 2:10, 20:44] = 1
    raw = F.avg_pool2d(image, 4)
    moved, target = Transform(0.5, 1).both(raw, image)
    assert moved.shape == (1, 3, 6, 4)
    assert target.shape == (1, 3, 24, 16)
    torch.testing.assert_close(F.avg_pool2d(target, 4), moved, atol=0.12, rtol=0)
    assert torch.equal(Transform(1.0, 3).both(raw, image)[1], image.rot90(3, (2, 3)))


def test_a_skewed_autoencoder_has_much_error_and_an_equivariant_one_next_to_none() -> None:
    """Both reconstruct equally well."""
    plain, skewed = (equivariance_errors(wrapped(skew), smooth()) for skew in (0.0, 0.5))
    assert plain["latent"] < 0.05
    assert skewed["latent"] > 10 * plain["latent"]
    assert skewed["decoded"] > 3 * plain["decoded"]
    assert skewed["reconstructed"] == pytest.approx(plain["reconstructed"], abs=1e-6)


def test_a_turn_alone_leaves_no_error_where_the_network_looks_the_same_from_all_sides() -> None:
    turns = [transform for transform in MEASURED if transform.scale == 1.0]
    assert len(turns) == 3
    errors = equivariance_errors(wrapped(0.0), smooth(), turns)
    assert errors["latent"] < 1e-6
    assert errors["decoded"] == pytest.approx(errors["reconstructed"], abs=1e-6)


def test_drawn_transforms_fill_their_range() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_transform(rng) for _ in range(400)]
    assert {transform.turns for transform in drawn} == {0, 1, 2, 3}
    scales = np.array([transform.scale for transform in drawn])
    assert 0.25 <= scales.min() < 0.27
    assert 0.98 < scales.max() < 1
    assert scales.mean() == pytest.approx(0.625, abs=0.03)


def test_a_mirrored_latent_of_the_demo_is_not_the_latent_of_the_mirrored_picture() -> None:
    """The figures that `train.mirror` tells its reader."""
    autoencoder = load_autoencoder(resolve(Components(folder="demo")).need("autoencoder"))
    pixels = [draw(make_scene(5, number)) for number in range(24)]
    images = [
        torch.tensor(one[: len(one) // 8 * 8, : one.shape[1] // 8 * 8])
        .permute(2, 0, 1)[None]
        .float()
        / 127.5
        - 1
        for one in pixels
    ]
    mirrored = [autoencoder.encode(image).flip(-1) for image in images]
    wanted = [autoencoder.normalize(autoencoder.encode(image.flip(-1))) for image in images]
    errors = [
        (autoencoder.normalize(raw) - latent).norm() / latent.norm()
        for raw, latent in zip(mirrored, wanted, strict=True)
    ]
    assert torch.stack(errors).mean().item() == pytest.approx(0.79, abs=0.03)
    squares = [
        (autoencoder.decode(raw) - image.flip(-1)).square().mean()
        for raw, image in zip(mirrored, images, strict=True)
    ]
    assert -10 * torch.stack(squares).mean().div(4).log10().item() == pytest.approx(21, abs=1)
