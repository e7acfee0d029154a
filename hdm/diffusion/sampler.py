"""From noise to latent: Euler and Heun over any velocity model, and guided generation with XUT.

Shapes: B batch, C channels, H W latent size, T text tokens, D text width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hdm.diffusion.flow_matching import shift_timesteps
from hdm.errors import InputError
from hdm.models.tread import draw_kept, num_kept
from hdm.models.xut import XUT
from hdm.positions import Camera, full_map, to_patch_grid

Solver = Literal["euler", "heun"]
Velocity = Callable[[Tensor, Tensor], Tensor]
"""model(latent (B, …), timestep (B,)) → velocity (B, …)."""
OnStep = Callable[[int, Tensor], None]
"""Called after each step with the number of steps done and the latent as it is now."""


def schedule(steps: int, shift: float = 1.0) -> Tensor:
    """Times from 1 to 0, (steps + 1,) float32: uniform, then shifted towards noise (`shift_timesteps`)."""
    if steps < 1:
        raise InputError(f"{steps} sampling steps", do="use 16 to 32")
    return shift_timesteps(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def sample(
    model: Velocity,
    noise: Tensor,
    steps: int | Tensor = 16,
    *,
    solver: Solver = "euler",
    on_step: OnStep | None = None,
) -> Tensor:
    """Follow the velocity from noise (t = 1) to a latent (t = 0).

    Args:
        model: velocity at (latent, timestep). Euler asks once a step, Heun twice.
        noise: (B, …), the start.
        steps: number of uniform steps, or the times themselves, descending (`schedule`).
        solver: error falls as 1/steps (euler) or 1/steps² (heun).
        on_step: called after each step.

    Returns:
        (B, …) like `noise`.
    """
    if solver not in ("euler", "heun"):
        raise InputError(f"no solver is called {solver!r}", do="use euler or heun")
    times = (schedule(steps) if isinstance(steps, int) else steps).tolist()
    latent = noise
    for done, (now, then) in enumerate(itertools.pairwise(times), 1):
        slope = model(latent, latent.new_full((len(latent),), now))
        ahead = latent + (then - now) * slope
        if solver == "heun":
            slope = (slope + model(ahead, latent.new_full((len(latent),), then))) / 2
            ahead = latent + (then - now) * slope
        latent = ahead
        if on_step is not None:
            on_step(done, latent)
    return latent


@torch.no_grad()
def generate(
    model: XUT,
    text: Tensor,
    text_mask: Tensor | None,
    empty_text: Tensor,
    empty_mask: Tensor | None,
    *,
    height: int,
    width: int,
    seeds: Sequence[int],
    steps: int = 16,
    guidance_scale: float = 3.0,
    tread_rate: float = 0.0,
    solver: Solver = "euler",
    shift: float = 1.0,
    camera: Camera | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Generate latents for prompts, with classifier-free guidance (arXiv 2207.12598).

    Args:
        model: the denoiser; computes on its own device, in the mode (train, eval) and autocast it is in.
        text, text_mask: the prompts' text embedding (B, T, D) and mask (B, T); mask None: no padding.
        empty_text, empty_mask: the same for the empty caption or for negative prompts, (1 or B, T', D) and (1 or B, T').
        height, width: latent size; multiples of the patch size.
        seeds: one for each prompt. A sample's noise, and its dropped tokens, come from its seed alone, whatever its batch.
        steps: sampling steps.
        guidance_scale: velocity is empty + scale·(prompt - empty); 1 is off, and the empty text is not looked at.
        tread_rate: share of image tokens that the empty branch drops (TREAD guidance), in [0, 1).
        solver, shift: see `sample` and `schedule`.
        camera: shift and zoom of the frame; None: the whole picture.
        on_step: called after each step with the steps done and the latent.

    Returns:
        (B, C, height, width), normalised latents.
    """
    if len(seeds) != len(text):
        raise InputError(f"{len(text)} prompts and {len(seeds)} seeds", do="give one seed a prompt")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = model.config.channels, height, width
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(text.device)
    positions = (camera or Camera()).move(full_map(height, width, model.config.positions))
    guided = GuidedVelocity(
        model,
        Text(text, text_mask),
        Text(empty_text, empty_mask).expand(len(text)),
        positions=to_patch_grid(positions, height, width, model.config.patch_size).to(text.device),
        log_aspect=math.log(width / height),
        guidance_scale=guidance_scale,
        tread_rate=tread_rate,
        generators=generators,
    )
    return sample(guided, noise, schedule(steps, shift), solver=solver, on_step=on_step)


class Text(NamedTuple):
    """A text embedding (B, T, D) and its mask (B, T) bool, False at padding; mask None: no padding."""

    embedding: Tensor
    mask: Tensor | None

    def expand(self, batch: int) -> Text:
        """One row repeated for the whole batch, or as it is."""
        embedding = self.embedding.expand(batch, -1, -1)
        return Text(embedding, self.mask if self.mask is None else self.mask.expand(batch, -1))

    def valid(self) -> Tensor:
        """The mask, all True where there is none."""
        return torch.ones_like(self.embedding[..., 0], dtype=torch.bool) if self.mask is None else self.mask

    def padded(self, length: int) -> Text:
        """With masked padding up to `length` tokens."""
        missing = length - self.embedding.shape[1]
        return Text(F.pad(self.embedding, (0, 0, 0, missing)), F.pad(self.valid(), (0, missing)))


class GuidedVelocity:
    """XUT's velocity under classifier-free guidance, as a function of (latent, timestep).

    Both branches go through the model as one batch where that changes nothing: the same tokens are kept in both, and
    the texts are equally long or their padding is masked.
    """

    def __init__(
        self,
        model: XUT,
        prompt: Text,
        empty: Text,
        *,
        positions: Tensor,
        log_aspect: float,
        guidance_scale: float,
        tread_rate: float,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.model, self.prompt, self.empty = model, prompt, empty
        self.positions, self.log_aspect = positions, log_aspect
        self.guidance_scale, self.tread_rate, self.generators = guidance_scale, tread_rate, generators
        all_kept = num_kept(len(positions), tread_rate) == len(positions)
        self.both = self._together() if all_kept and guidance_scale != 1 else None

    def __call__(self, latent: Tensor, timestep: Tensor) -> Tensor:
        if self.guidance_scale == 1:
            return self._predict(latent, timestep, self.prompt)
        if self.both is not None:
            with_text, without = self._predict(latent.repeat(2, 1, 1, 1), timestep.repeat(2), self.both).chunk(2)
        else:
            with_text = self._predict(latent, timestep, self.prompt)
            without = self._predict(latent, timestep, self.empty, self._draw_kept())
        return without + self.guidance_scale * (with_text - without)

    def _predict(self, latent: Tensor, timestep: Tensor, text: Text, kept: Tensor | None = None) -> Tensor:
        log_aspect = timestep.new_full(timestep.shape, self.log_aspect)
        return self.model(
            latent, timestep, text.embedding, positions=self.positions, log_aspect=log_aspect, text_mask=text.mask, kept=kept
        ).float()

    def _draw_kept(self) -> Tensor | None:
        """Anew at each call, each sample's from its own generator."""
        drawn = [draw_kept(1, len(self.positions), self.tread_rate, generator) for generator in self.generators]
        kept = [tokens for tokens in drawn if tokens is not None]
        return torch.cat(kept).to(self.positions.device) if kept else None

    def _together(self) -> Text | None:
        length = max(self.prompt.embedding.shape[1], self.empty.embedding.shape[1])
        if self.model.config.text_mask == "masked":
            texts = self.prompt.padded(length), self.empty.padded(length)
            return Text(torch.cat([text.embedding for text in texts]), torch.cat([text.valid() for text in texts]))
        if self.prompt.embedding.shape == self.empty.embedding.shape:
            return Text(torch.cat((self.prompt.embedding, self.empty.embedding)), None)
        return None
