"""From noise to latent: Euler and Heun over any velocity model, and guided generation with XUT.

Shapes: B batch, C channels, H W latent size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hdm.diffusion.flow_matching import shift_timesteps
from hdm.diffusion.guidance import GuidedVelocity, Text
from hdm.diffusion.settings import SamplerSettings
from hdm.errors import InputError
from hdm.models.denoiser import Denoiser
from hdm.models.tread import num_kept
from hdm.positions import Camera, full_map, to_patch_grid

Solver = Literal["euler", "heun"]
USUAL = SamplerSettings()
Velocity = Callable[[Tensor, Tensor], Tensor]
"""model(latent (B, …), timestep (B,)) → velocity (B, …)."""
OnStep = Callable[[int, Tensor], Tensor | None]
"""Called after each step with the number of steps done and the latent as it is now; may return
another latent to go on from.
"""
Seed = int | torch.Generator


@dataclass(frozen=True)
class Sampling:
    """How latents are generated; the recipe's by default.

    Args:
        steps: from noise to latent.
        solver: euler asks the model once a step, heun twice.
        guidance_scale: weight of classifier-free guidance; 1 is off, and the negative prompt is not
            looked at.
        guidance_interval: times (1 is noise) between which there is guidance, both included;
            outside the prompt alone counts.
        tread_rates: share of the image tokens that the prompt's and the negative branch drop, each
            in [0, 1).
        shift: of the times towards noise (`flow_matching.shift_timesteps`); 1 is none.

    Raises:
        InputError: a value is out of its range.
    """

    steps: int = USUAL.steps
    solver: Solver = USUAL.solver
    guidance_scale: float = USUAL.guidance
    guidance_interval: tuple[float, float] = USUAL.guidance_interval
    tread_rates: tuple[float, float] = USUAL.tread_rates
    shift: float = USUAL.shift

    def __post_init__(self) -> None:
        _check_solver(self.solver)
        if not math.isfinite(self.guidance_scale):
            raise InputError(
                f"guidance scale {self.guidance_scale} is no number",
                do="1 is no guidance, 2 to 4 is usual",
            )
        self.times()  # refuses a number of steps or a shift that makes none
        first, last = self.guidance_interval
        if not 0 <= first <= last <= 1:
            raise InputError(
                f"guidance interval {first}, {last} is not two times in order",
                do="from 0 (latent) to 1 (noise): 0.1, 0.8",
            )
        for rate in self.tread_rates:
            num_kept(0, rate)  # refuses a rate outside [0, 1)

    @classmethod
    def of(cls, settings: SamplerSettings) -> Sampling:
        """As settings ask."""
        return cls(
            settings.steps,
            settings.solver,
            settings.guidance,
            settings.guidance_interval,
            settings.tread_rates,
            settings.shift,
        )

    def times(self) -> Tensor:
        """(steps + 1,), see `schedule`."""
        return schedule(self.steps, self.shift)


def schedule(steps: int, shift: float = 1.0) -> Tensor:
    """Times from 1 to 0, (steps + 1,) float32: uniform, then shifted towards noise
    (`shift_timesteps`).
    """
    if steps < 1:
        raise InputError(f"{steps} sampling steps", do="use 16 to 32")
    # The schedule is computed in float64 and rounded once.
    return shift_timesteps(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def sample(
    model: Velocity,
    noise: Tensor,
    steps: int | Tensor = USUAL.steps,
    *,
    solver: Solver = USUAL.solver,
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
    _check_solver(solver)
    times = (schedule(steps) if isinstance(steps, int) else steps).tolist()
    latent = noise
    for done, (now, then) in enumerate(itertools.pairwise(times), 1):
        slope = model(latent, latent.new_full((len(latent),), now))
        ahead = latent + (then - now) * slope
        if solver == "heun":
            # Heun's method follows the mean of the slopes at both ends of the step.
            slope = (slope + model(ahead, latent.new_full((len(latent),), then))) / 2
            ahead = latent + (then - now) * slope
        latent = ahead
        changed = on_step(done, latent) if on_step is not None else None
        # diffusers' callbacks may change the latent.
        latent = latent if changed is None else changed
    return latent


@torch.no_grad()
def generate(
    model: Denoiser,
    prompt: Text,
    negative: Text,
    *,
    height: int,
    width: int,
    seeds: Sequence[Seed],
    sampling: Sampling | None = None,
    camera: Camera | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Generate latents for prompts.

    Args:
        model: the denoiser; computes on its own device, in the mode (train, eval) and autocast it
            is in.
        prompt: text of B prompts, on the model's device.
        negative: text of one negative prompt or of B; the empty caption's where there is none.
        height: of the latents; a multiple of the patch size.
        width: likewise.
        seeds: one a prompt: a number, or a generator on any device. A sample's noise, and the
            tokens it drops, come from its seed alone, whatever its batch.
        sampling: steps, solver, guidance, TREAD; None: the recipe's.
        camera: shift and zoom of the frame; None: the whole picture.
        on_step: called after each step with the steps done and the latent.

    Returns:
        (B, C, height, width) float32, normalised latents.

    Raises:
        InputError: counts or sizes do not fit.
    """
    sampling = sampling or Sampling()
    batch = len(prompt.embedding)
    if len(seeds) != batch:
        raise InputError(f"{batch} prompts and {len(seeds)} seeds", do="give one seed a prompt")
    device = prompt.embedding.device
    # The camera moves the latent grid's positions; they are brought to the patch grid afterwards,
    # as in training.
    positions = (camera or Camera()).move(full_map(height, width, model.config.positions))
    generators = [_generator(seed) for seed in seeds]
    shape = model.config.channels, height, width
    noises = []
    for source in generators:
        # Drawn on the generator's device, so that a seed gives the same noise on any accelerator.
        noises.append(torch.randn(shape, generator=source, device=source.device).to(device))
    noise = torch.stack(noises)
    guided = GuidedVelocity(
        model,
        prompt,
        negative.expand(batch),
        positions=to_patch_grid(positions, height, width, model.config.patch_size).to(device),
        # The aspect is that of the picture, whatever the camera shows of it.
        log_aspect=math.log(width / height),
        scale=sampling.guidance_scale,
        interval=sampling.guidance_interval,
        tread_rates=sampling.tread_rates,
        generators=generators,
    )
    return sample(guided, noise, sampling.times(), solver=sampling.solver, on_step=on_step)


def _generator(seed: Seed) -> torch.Generator:
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


def _check_solver(solver: str) -> None:
    if solver not in get_args(Solver):
        raise InputError(f"no solver is called {solver!r}", do="use euler or heun")
