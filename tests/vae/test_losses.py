"""Each term against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hdm.errors import InputError
from hdm.models.equivariance import Transform
from hdm.vae.losses import Objective, divergence, edge_difference, pixel_difference
from hdm.vae.settings import VaeSettings
from tests.vae.conftest import every_class


def pictures(count: int = 2, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_differences_of_pixels_and_of_edges() -> None:
    a, b = pictures(), pictures(4)[2:]
    difference = (a - b).numpy().astype(float)
    assert pixel_difference(a, b).item() == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    assert pixel_difference(a, b, "l2").item() == pytest.approx((difference**2).mean(), rel=1e-5)
    down, across = (
        difference[:, :, 1:] - difference[:, :, :-1],
        difference[..., 1:] - difference[..., :-1],
    )
    assert edge_difference(a, b).item() == pytest.approx(
        np.abs(down).mean() + np.abs(across).mean(), rel=1e-5
    )


def test_divergence_is_the_integral_of_the_densities() -> None:
    """Of one latent value with mean 0.7 and deviation 0.4, numerically."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    mean, deviation = 0.7, 0.4
    x = np.linspace(-6, 6, 200_001)
    log_p = -0.5 * ((x - mean) / deviation) ** 2 - math.log(deviation)
    p = np.exp(log_p) / math.sqrt(2 * math.pi)
    expected = np.trapezoid(p * (log_p + 0.5 * x**2), x)
    parameters = torch.cat(
        [torch.full((2, 3, 4, 4), mean), torch.full((2, 3, 4, 4), 2 * math.log(deviation))], dim=1
    )
    assert divergence(DiagonalGaussianDistribution(parameters)).item() == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("name", every_class())
def test_the_loss_is_the_weighted_sum_and_reaches_every_weight(name: str) -> None:
    model, image = every_class()[name], pictures(side=32)
    settings = VaeSettings(equivariance_weight=0.5, kl_weight=0.01, edge_weight=0.0)
    transform = Transform(0.5, 1)
    loss, terms = Objective(settings, "cpu")(
        model, image, transform, torch.Generator().manual_seed(3)
    )
    has_posterior = name.startswith("AutoencoderKL")
    assert set(terms) == {"reconstruction", "equivariance", *(["kl"] if has_posterior else [])}
    expected = (
        terms["reconstruction"]
        + 0.5 * terms["equivariance"]
        + 0.01 * terms.get("kl", torch.zeros(()))
    )
    torch.testing.assert_close(loss, expected)

    encoded = model.encode(image)
    raw = (
        encoded.latent_dist.sample(torch.Generator().manual_seed(3))
        if has_posterior
        else next(iter(encoded.values()))
    )
    torch.testing.assert_close(
        terms["reconstruction"], (model.decode(raw).sample - image).abs().mean()
    )
    moved, target = transform.both(raw, image)
    assert target.shape == (2, 3, 16, 16)
    torch.testing.assert_close(
        terms["equivariance"], (model.decode(moved).sample - target).abs().mean()
    )
    loss.backward()
    without = {key for key, value in model.named_parameters() if value.grad is None}
    assert not without


def test_without_the_term_no_transformed_latent_is_decoded() -> None:
    _, terms = Objective(VaeSettings(equivariance_weight=0), "cpu")(
        every_class()["AutoencoderTiny"], pictures(side=32), Transform(0.5, 1), torch.Generator()
    )
    assert set(terms) == {"reconstruction"}


def test_a_perceptual_term_without_its_weights_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"perceptual_weight needs (torchmetrics|VGG16's weights)"):
        Objective(VaeSettings(perceptual_weight=0.1), "cpu")
