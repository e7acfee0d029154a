"""The held-out loss, against velocities computed here."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from hdm.training import assembly
from hdm.training.measures import validation
from hdm.training.measures.sample_grid import prompts_to_show
from hdm.training.objective import FlowMatching
from hdm.training.prefetcher import VALIDATION, generator
from tests.training.workshop import Workshop


def test_every_prompt_that_is_asked_for_is_shown(workshop: Workshop, tmp_path: Path) -> None:
    job = workshop.cached().job(tmp_path)
    wanted = tuple(f"prompt {number}" for number in range(20))
    shown = prompts_to_show(wanted, job.output("caption"), job.output("filter"))
    assert tuple(shown) == wanted


class SaysTheTime(torch.nn.Module):
    """Predicts a velocity of t everywhere."""

    def forward(
        self,
        latent: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        **given: torch.Tensor,
    ) -> torch.Tensor:
        return timestep.view(-1, 1, 1, 1).expand_as(latent)


def test_the_held_out_loss_is_told_by_time_too(workshop: Workshop, tmp_path: Path) -> None:
    job = workshop.cached().job(tmp_path)
    loader = assembly.measured_loader(job, "validation", 4)
    conditioning = assembly.make_conditioning(job, torch.device("cpu"))
    found = validation.measure(
        SaysTheTime(),
        loader,
        conditioning,
        FlowMatching(),
        contextlib.nullcontext,
        3,
        lambda: False,
    )
    assert found is not None
    velocities = []
    for start in (0, 4):  # six pictures
        latent = loader.batch(start).latent[: 6 - start]
        velocities.append(
            torch.randn(latent.shape, generator=generator(3, VALIDATION, start)) - latent
        )
    by_time = [
        (t - torch.cat(velocities)).square().mean().item() for t in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    told = found.held_out()
    assert told["validation_loss_by_time"] == pytest.approx(by_time, rel=1e-5)
    assert told["validation_loss"] == pytest.approx(sum(by_time) / 5, rel=1e-5)
    assert found.of_nothing == pytest.approx(
        torch.cat([velocity.flatten(1) for velocity in velocities]).square().mean().item(), rel=1e-5
    )
    assert (
        validation.measure(
            SaysTheTime(),
            loader,
            conditioning,
            FlowMatching(),
            contextlib.nullcontext,
            3,
            lambda: True,
        )
        is None
    )
