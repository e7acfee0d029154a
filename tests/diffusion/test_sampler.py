import itertools
import math
from dataclasses import replace

import pytest
import torch

from hdm.architecture import XUTConfig
from hdm.diffusion.sampler import generate, sample, schedule
from hdm.errors import InputError
from hdm.models.tread import draw_kept
from hdm.models.xut import XUT
from hdm.positions import Camera, full_map

CONFIG = XUTConfig(
    width=32, num_heads=2, head_size=16, mlp_width=24, text_width=6, depth=1, dec_blocks=1, post_blocks=1, text_mask="masked"
)


def gaussian_flow(mean: float, std: float):
    """Velocity of the flow that carries N(0, 1) at t = 1 to N(mean, std²) at t = 0, and where it carries each noise.

    x_t is N((1-t)·mean, s_t²) with s_t² = (1-t)²·std² + t²; the flow keeps (x_t - (1-t)·mean) / s_t.
    """

    def spread(t):
        return torch.sqrt((1 - t) ** 2 * std**2 + t**2)

    def model(x, t):
        t = t.view(-1, 1)
        return -mean + (t - (1 - t) * std**2) / spread(t) ** 2 * (x - (1 - t) * mean)

    return model, lambda noise: mean + std * noise


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_error_falls_with_the_solver_s_order(solver, order, shift):
    model, carried = gaussian_flow(0.7, 0.4)
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for steps in (256, 512, 1024):
        ours = sample(model, noise, schedule(steps, shift), solver=solver)
        errors.append((ours - carried(noise)).norm().item())
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders == pytest.approx([order] * 2, abs=0.1)


def test_times_go_from_noise_to_latent_and_each_step_is_reported():
    seen, done = [], []

    def model(x, t):
        seen.append(t[0].item())
        return torch.zeros_like(x)

    noise = torch.randn(2, 3)
    assert torch.equal(sample(model, noise, 4, on_step=lambda step, latent: done.append((step, latent.shape))), noise)
    assert seen == [1.0, 0.75, 0.5, 0.25]
    assert done == [(step, (2, 3)) for step in (1, 2, 3, 4)]
    with pytest.raises(InputError, match="0 sampling steps"):
        schedule(0)
    with pytest.raises(InputError, match="no solver"):
        sample(model, noise, 4, solver="midpoint")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = XUT(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    empty = torch.randn(1, 2, 6, generator=generator)
    return dict(
        text=torch.randn(3, 5, 6, generator=generator), text_mask=mask, empty_text=empty, empty_mask=torch.ones(1, 2, dtype=torch.bool)
    )


SIZE = dict(height=6, width=8, steps=3)


def plainly(model, texts, seeds, scale=3.0, rate=0.0, camera=None, steps=3):
    """Guided Euler, one picture at a time, each branch by itself, padding cut off."""
    found = []
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(1, 4, 6, 8, generator=generator)
        positions = full_map(6, 8)
        if camera:
            positions = (positions + torch.tensor([camera.y, camera.x])) / camera.zoom
        given = dict(positions=positions, log_aspect=torch.tensor([math.log(8 / 6)]))
        for step in range(steps):
            t = torch.tensor([1 - step / steps])
            kept = draw_kept(1, 12, rate, generator) if scale != 1 else None
            prompt = model(latent, t, texts["text"][i : i + 1, : texts["text_mask"][i].sum()], **given)
            empty = model(latent, t, texts["empty_text"], kept=kept, **given)
            latent = latent - (empty + scale * (prompt - empty)) / steps
        found.append(latent)
    return torch.cat(found)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("rate", [0.0, 0.5])
@torch.no_grad()
def test_generation_is_guided_euler(model, texts, scale, rate):
    camera = Camera(0.1, -0.2, 1.5)
    ours = generate(model, **texts, **SIZE, seeds=[4, 5, 6], guidance_scale=scale, tread_rate=rate, camera=camera)
    torch.testing.assert_close(ours, plainly(model, texts, [4, 5, 6], scale, rate, camera), rtol=1e-4, atol=1e-5)


def test_a_picture_does_not_depend_on_its_batch(model, texts):
    for rate in (0.0, 0.5):
        together = generate(model, **texts, **SIZE, seeds=[4, 5, 6], tread_rate=rate)
        alone = {**texts, "text": texts["text"][1:2], "text_mask": texts["text_mask"][1:2]}
        torch.testing.assert_close(generate(model, **alone, **SIZE, seeds=[5], tread_rate=rate), together[1:2], rtol=1e-4, atol=1e-5)


def test_where_padding_is_attended_to_branches_of_different_length_stay_apart(model, texts):
    padded = XUT(replace(CONFIG, text_mask="padded")).eval()
    padded.load_state_dict(model.state_dict())
    whole = {**texts, "text_mask": torch.ones(3, 5, dtype=torch.bool)}
    ours = generate(padded, **whole, **SIZE, seeds=[1, 2, 3])
    torch.testing.assert_close(ours, generate(model, **whole, **SIZE, seeds=[1, 2, 3]), rtol=1e-4, atol=1e-5)
    negative = {**whole, "empty_text": texts["text"].flip(0), "empty_mask": None}  # equally long: one batch
    torch.testing.assert_close(
        generate(padded, **negative, **SIZE, seeds=[1, 2, 3]), generate(model, **negative, **SIZE, seeds=[1, 2, 3]), rtol=1e-4, atol=1e-5
    )


def test_requests_that_cannot_be_met_are_refused(model, texts):
    with pytest.raises(InputError, match="3 prompts and 2 seeds"):
        generate(model, **texts, **SIZE, seeds=[1, 2])
    with pytest.raises(InputError, match="patches of 2"):
        generate(model, **texts, height=5, width=8, seeds=[1, 2, 3])
    with pytest.raises(InputError, match="TREAD rate"):
        generate(model, **texts, **SIZE, seeds=[1, 2, 3], tread_rate=1.0)
