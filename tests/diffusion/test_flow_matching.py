import math

import numpy as np
import pytest
import torch

from hdm.diffusion.flow_matching import (
    draw_timesteps,
    interpolate,
    losses_by_time,
    min_snr_weights,
    sample_losses,
    shift_timesteps,
    velocity,
)
from hdm.errors import InputError


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_are_logit_normal_and_shifting_moves_their_logit_by_its_logarithm(shift):
    t = draw_timesteps(20_000, torch.Generator().manual_seed(0), shift).double()
    logits = torch.log(t / (1 - t)) - math.log(shift)
    assert abs(logits.mean().item()) < 0.03
    assert abs(logits.std().item() - 1) < 0.03
    inside = np.array([((logits < z).double().mean().item()) for z in (-1.0, 0.5, 2.0)])
    np.testing.assert_allclose(inside, [0.1587, 0.6915, 0.9772], atol=0.01)


def test_shifting_keeps_the_ends():
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(shift_timesteps(ends, 3.0), ends)
    with pytest.raises(InputError, match="shift"):
        shift_timesteps(ends, 0.0)


def test_the_velocity_is_the_path_s_derivative():
    generator = torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 5, 4, 3, 3, generator=generator, dtype=torch.float64)
    t = torch.rand(5, generator=generator, dtype=torch.float64)
    slope = (interpolate(latent, noise, t + 1e-6) - interpolate(latent, noise, t - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, velocity(latent, noise), rtol=0, atol=1e-8)
    assert torch.equal(interpolate(latent, noise, torch.zeros(5)), latent)
    assert torch.equal(interpolate(latent, noise, torch.ones(5)), noise)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_min_snr_weighs_the_predicted_latent_s_error_by_the_signal_to_noise_ratio(shift):
    gamma, generator = 5.0, torch.Generator().manual_seed(0)
    latent, noise, error = torch.randn(3, 6, 2, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.02, 0.1, 1 / (1 + gamma**0.5), 0.5, 0.9, 0.99], dtype=torch.float64)
    predicted = velocity(latent, noise) + error
    # The latent that a velocity predicts, and the paper's loss of it.
    found = interpolate(latent, noise, t) - t.view(-1, 1, 1, 1) * predicted
    signal_to_noise = ((1 - t) / t) ** 2
    wanted = signal_to_noise.clamp(max=gamma) * (found - latent).square().flatten(1).mean(1)
    ours = min_snr_weights(t, gamma, shift) * sample_losses(predicted, velocity(latent, noise))
    ratio = ours.double() / wanted
    torch.testing.assert_close(ratio, ratio[:1].expand(6), rtol=1e-5, atol=0)
    assert min_snr_weights(t, gamma, shift).argmax() == 2
    drawn = draw_timesteps(400_000, generator, shift)
    assert min_snr_weights(drawn, gamma, shift).mean().item() == pytest.approx(1.0, abs=0.005)


def test_losses_add_up_over_bins_and_samples():
    generator = torch.Generator().manual_seed(0)
    predicted, wanted = torch.randn(2, 50, 3, 4, 4, generator=generator)
    losses = sample_losses(predicted.bfloat16(), wanted)
    assert losses.dtype == torch.float32
    losses = sample_losses(predicted, wanted)
    torch.testing.assert_close(losses.mean(), torch.nn.functional.mse_loss(predicted, wanted))
    t = torch.cat((torch.rand(48, generator=generator), torch.tensor([0.0, 1.0])))
    sums, counts = losses_by_time(losses, t, 4)
    for i in range(4):
        inside = [
            loss
            for loss, time in zip(losses.tolist(), t.tolist(), strict=True)
            if min(int(time * 4), 3) == i
        ]
        assert counts[i] == len(inside)
        assert sums[i].item() == pytest.approx(sum(inside), rel=1e-5)


def test_the_contrastive_term_is_the_squared_distance_to_the_neighbour_s_velocity():
    predicted, wanted = torch.randn(
        2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    losses = sample_losses(predicted, wanted, 0.05)
    for i, j in enumerate([1, 0, 3, 2, None]):
        own, other = (
            0.0 if k is None else (predicted[i] - wanted[k]).square().mean().item() for k in (i, j)
        )
        assert losses[i].item() == pytest.approx(own - 0.05 * other, rel=1e-5)
    parts = [
        sample_losses(predicted[start : start + 2], wanted[start : start + 2], 0.05)
        for start in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.cat(parts), losses)
    # For a pair its minimum is where the paper puts it: (wanted - λ·other) / (1 - λ).
    best = ((wanted[:2] - 0.05 * wanted[:2].flip(0)) / 0.95).requires_grad_()
    sample_losses(best, wanted[:2], 0.05).sum().backward()
    assert best.grad.abs().max().item() < 1e-6
