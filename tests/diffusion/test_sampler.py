import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from hdm.diffusion.guidance import Text
from hdm.diffusion.sampler import Sampling, generate, sample, schedule
from hdm.errors import InputError
from hdm.models.tread import draw_kept
from hdm.models.xut import XUT
from hdm.positions import Camera, full_map
from tests.small_models import SMALL, shaken

CONFIG = replace(SMALL, text_width=6, text_mask="masked")


def gaussian_flow(mean: float, std: float):
    """Velocity of the flow that carries N(0, 1) at t = 1 to N(mean, std²) at t = 0, and where it
    carries each noise.

    x_t is N((1-t)·mean, s_t²) with s_t² = (1-t)²·std² + t²; the flow keeps (x_t - (1-t)·mean) /
    s_t.
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
    assert torch.equal(
        sample(model, noise, 4, on_step=lambda step, latent: done.append((step, latent.shape))),
        noise,
    )
    assert seen == [1.0, 0.75, 0.5, 0.25]
    assert done == [(step, (2, 3)) for step in (1, 2, 3, 4)]
    assert torch.equal(
        sample(model, noise, 4, on_step=lambda step, latent: latent + step), noise + 1 + 2 + 3 + 4
    )
    with pytest.raises(InputError, match="0 sampling steps"):
        schedule(0)
    with pytest.raises(InputError, match="no solver"):
        sample(model, noise, 4, solver="midpoint")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model():
    return shaken(CONFIG).eval()


@pytest.fixture
def texts():
    """Three prompts of different length, and the empty caption."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    empty = Text(torch.randn(1, 2, 6, generator=generator), torch.ones(1, 2, dtype=torch.bool))
    return Text(torch.randn(3, 5, 6, generator=generator), mask), empty


SIZE: dict[str, Any] = dict(height=6, width=8)  # 12 patches
SEEDS = [4, 5, 6]


def plainly(model, prompt, negative, sampling, camera=None):
    """Guided Euler or Heun, one picture at a time, each branch by itself, padding cut off."""
    (rate, negative_rate), (first, last) = sampling.tread_rates, sampling.guidance_interval
    positions = full_map(6, 8)
    if camera:
        positions = (positions + torch.tensor([camera.y, camera.x])) / camera.zoom
    given = dict(positions=positions, log_aspect=torch.tensor([math.log(8 / 6)]))
    found = []
    for i, seed in enumerate(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        row = i if len(negative.embedding) > 1 else 0
        texts = [
            text.embedding[j : j + 1, : text.mask[j].sum()]
            for text, j in ((prompt, i), (negative, row))
        ]

        def slope(latent, t, generator=generator, texts=texts):
            guided = sampling.guidance_scale != 1 and first <= t <= last
            kept = draw_kept(1, 12, rate, generator)
            with_prompt = model(latent, torch.tensor([t]), texts[0], kept=kept, **given)
            if not guided:
                return with_prompt
            kept = kept if rate == negative_rate else draw_kept(1, 12, negative_rate, generator)
            without = model(latent, torch.tensor([t]), texts[1], kept=kept, **given)
            return without + sampling.guidance_scale * (with_prompt - without)

        latent = torch.randn(1, 4, 6, 8, generator=generator)
        for step in range(sampling.steps):
            now, then = (1 - (step + k) / sampling.steps for k in (0, 1))
            v = slope(latent, now)
            if sampling.solver == "heun":
                v = (v + slope(latent - v / sampling.steps, then)) / 2
            latent = latent - v / sampling.steps
        found.append(latent)
    return torch.cat(found)


class Counted(torch.nn.Module):
    """A model, and the batch size of each call."""

    def __init__(self, model):
        super().__init__()
        self.model: Any = model
        self.config = model.config
        self.sizes: list[int] = []

    def forward(self, latent, *args, **kwargs):
        self.sizes.append(len(latent))
        return self.model(latent, *args, **kwargs)


@pytest.mark.parametrize(
    ("sampling", "sizes"),
    [
        (Sampling(steps=3), [6] * 3),
        (Sampling(steps=3, guidance_scale=1.0), [3] * 3),
        (Sampling(steps=3, tread_rates=(0.0, 0.5)), [3, 3] * 3),
        (Sampling(steps=3, tread_rates=(0.25, 0.75)), [3, 3] * 3),
        (Sampling(steps=3, tread_rates=(0.5, 0.5)), [6] * 3),
        (Sampling(steps=3, tread_rates=(0.5, 0.0), guidance_scale=1.0), [3] * 3),
        (Sampling(steps=4, guidance_interval=(0.5, 0.8)), [3, 6, 6, 3]),
        (Sampling(steps=4, guidance_interval=(0.3, 0.6), tread_rates=(0.25, 0.5)), [3, 3, 3, 3, 3]),
        (Sampling(steps=4, guidance_interval=(1.0, 1.0)), [6, 3, 3, 3]),
        (Sampling(steps=2, solver="heun"), [6] * 4),
        (
            Sampling(steps=2, solver="heun", guidance_interval=(0.5, 0.5), tread_rates=(0.0, 0.5)),
            [3, 3, 3, 3, 3, 3],
        ),
    ],
)
@torch.no_grad()
def test_generation_is_the_solver_under_guidance_with_as_few_forwards_as_it_needs(
    model, texts, sampling, sizes
):
    camera = Camera(0.1, -0.2, 1.5)
    counted: Any = Counted(model)
    prompt, negative = texts
    ours = generate(
        counted, prompt, negative, **SIZE, seeds=SEEDS, sampling=sampling, camera=camera
    )
    torch.testing.assert_close(
        ours, plainly(model, prompt, negative, sampling, camera), rtol=1e-4, atol=1e-5
    )
    assert counted.sizes == sizes


@torch.no_grad()
def test_each_prompt_may_have_a_negative_prompt_of_its_own(model, texts):
    prompt, _ = texts
    negative, sampling = prompt.rows([1, 2, 0]), Sampling(steps=3)
    ours = generate(model, prompt, negative, **SIZE, seeds=SEEDS, sampling=sampling)
    torch.testing.assert_close(
        ours, plainly(model, prompt, negative, sampling), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(
        ours, generate(model, *texts, **SIZE, seeds=SEEDS, sampling=sampling), atol=0.01
    )


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_a_picture_does_not_depend_on_its_batch_nor_on_how_its_seed_is_given(model, texts, rates):
    prompt, empty = texts
    sampling = Sampling(steps=3, tread_rates=rates)
    together = generate(model, prompt, empty, **SIZE, seeds=SEEDS, sampling=sampling)
    alone = generate(
        model,
        prompt.rows([1]),
        empty,
        **SIZE,
        seeds=[torch.Generator().manual_seed(5)],
        sampling=sampling,
    )
    torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-5)
    assert torch.equal(
        together, generate(model, prompt, empty, **SIZE, seeds=SEEDS, sampling=sampling)
    )


def test_where_padding_is_attended_to_branches_of_different_length_stay_apart(model, texts):
    padded = XUT(replace(CONFIG, text_mask="padded")).eval()
    padded.load_state_dict(model.state_dict())
    prompt, empty = Text(texts[0].embedding), texts[1]
    for negative, sizes in ((empty, [3, 3] * 2), (Text(prompt.embedding.flip(0)), [6] * 2)):
        counted: Any = Counted(padded)
        ours = generate(counted, prompt, negative, **SIZE, seeds=SEEDS, sampling=Sampling(2))
        torch.testing.assert_close(
            ours,
            generate(model, prompt, negative, **SIZE, seeds=SEEDS, sampling=Sampling(2)),
            rtol=1e-4,
            atol=1e-5,
        )
        assert counted.sizes == sizes


def test_requests_that_cannot_be_met_are_refused(model, texts):
    with pytest.raises(InputError, match="3 prompts and 2 seeds"):
        generate(model, *texts, **SIZE, seeds=[1, 2])
    with pytest.raises(InputError, match="3 prompts and 2 negative prompts"):
        generate(model, texts[0], texts[0].rows([0, 1]), **SIZE, seeds=SEEDS)
    with pytest.raises(InputError, match="patches of 2"):
        generate(model, *texts, height=5, width=8, seeds=SEEDS)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("steps", 0, "0 sampling steps"),
        ("solver", "midpoint", "no solver"),
        ("guidance_interval", (0.8, 0.2), "two times in order"),
        ("guidance_interval", (0.0, 1.5), "two times in order"),
        ("tread_rates", (0.0, 1.0), "TREAD rate 1.0"),
        ("tread_rates", (-0.1, 0.0), "TREAD rate -0.1"),
        ("shift", 0.0, "timestep shift"),
    ],
)
def test_settings_out_of_range_are_refused(field, value, said):
    with pytest.raises(InputError, match=said):
        Sampling(**{field: value})
