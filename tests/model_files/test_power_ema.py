"""Power-function averages against sums over every weight that there was, and against the paper's
formulas.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hdm.errors import InputError
from hdm.model_files.power_ema import (
    coefficients,
    find_snapshots,
    gamma_of,
    overlap,
    snapshot_name,
    synthesize,
)
from hdm.training.techniques.power_tracks import PowerTracks

STEPS = 240


def profile(gamma: float, end: float, count: int = 400_000) -> tuple[np.ndarray, np.ndarray]:
    """Middles of small intervals of [0, end], and the profile there."""
    places = (np.arange(count) + 0.5) * end / count
    return places, (gamma + 1) * (places / end) ** gamma / end


@pytest.mark.parametrize("gamma", [0.5, 3.0, 6.94, 16.97, 50.0])
def test_the_length_is_the_profiles_standard_deviation(gamma: float) -> None:
    places, weights = profile(gamma, 1.0)
    mean = (places * weights).mean()
    assert gamma_of(np.sqrt(((places - mean) ** 2 * weights).mean())) == pytest.approx(
        gamma, rel=1e-3
    )


def test_the_papers_lengths() -> None:
    """Section 3.1: σ_rel = 0.05 and 0.10 are γ = 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    for length in (0.0, 0.3, -1.0):
        with pytest.raises(InputError, match="outside"):
            gamma_of(length)


def test_the_overlap_of_two_profiles_is_their_integral() -> None:
    for (a, s), (b, t) in [
        ((6.94, 80.0), (16.97, 80.0)),
        ((6.94, 30.0), (16.97, 100.0)),
        ((20.0, 100.0), (2.0, 55.0)),
    ]:
        places, first = profile(a, s)
        second = np.where(places <= t, (b + 1) * (places / t) ** b / t, 0.0)
        assert overlap((a, s), (b, t)) == pytest.approx(
            (first * second).sum() * s / len(places), rel=1e-3
        )
    assert np.isfinite(overlap((50.0, 1e6), (50.0, 2e5)))


class Walk:
    """Weights on a random walk with a trend, all of them recorded; and the snapshots that training
    would write.
    """

    def __init__(self, folder: Path, lengths: tuple[float, ...], every: int) -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(20, 10)
        tracks = PowerTracks(dict(model.named_parameters()), lengths)
        self.weights = []
        for step in range(STEPS):
            with torch.no_grad():
                model.weight.add_(torch.randn_like(model.weight) + 0.1)
            tracks.update(step)
            self.weights.append(model.weight.detach().double().clone())
            if (step + 1) % every == 0:
                for name, tensors in tracks.tensors().items():
                    save_file(tensors, folder / snapshot_name(name, step + 1))

    def average(self, length: float, end: int = STEPS) -> torch.Tensor:
        """Every weight times the part of the power function between its step and the one before,
        summed.
        """
        edges = (torch.arange(end + 1, dtype=torch.float64) / end) ** (gamma_of(length) + 1)
        average: torch.Tensor = sum(
            part * weight for part, weight in zip(edges.diff(), self.weights, strict=False)
        )
        return average

    @property
    def spread(self) -> float:
        """How far apart averages of different length are: the scale of an error."""
        return float((self.average(0.05) - self.average(0.2)).norm())


def test_a_track_is_the_power_function_average_of_all_weights(tmp_path: Path) -> None:
    walk = Walk(tmp_path, (0.05, 0.2), every=60)
    found = find_snapshots(tmp_path)
    assert [(one.length, one.step) for one in found] == [
        (length, step) for length in (0.05, 0.2) for step in (60, 120, 180, 240)
    ]
    from safetensors.torch import load_file

    for one in found:
        torch.testing.assert_close(
            load_file(one.path)["weight"].double(),
            walk.average(one.length, one.step),
            atol=1e-4,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("length", "allowed"), [(0.05, 1e-5), (0.1, 1e-5), (0.07, 0.03), (0.13, 0.03), (0.2, 0.03)]
)
def test_a_length_chosen_afterwards_is_as_if_it_had_been_kept(
    tmp_path: Path, length: float, allowed: float
) -> None:
    walk = Walk(tmp_path, (0.05, 0.1), every=15)
    found, error = synthesize(find_snapshots(tmp_path), length)
    assert float((found["weight"].double() - walk.average(length)).norm()) < allowed * walk.spread
    assert error < 0.05
    assert found["weight"].dtype == torch.float32


def test_what_is_left_of_the_profile_is_told() -> None:
    snapshots = [
        (gamma_of(length), float(step)) for length in (0.05, 0.1) for step in (25, 50, 75, 100)
    ]
    wanted = (gamma_of(0.07), 100.0)
    factors, error = coefficients(snapshots, wanted)
    places, target = profile(*wanted)
    made = sum(
        x * np.where(places <= t, (g + 1) * (places / t) ** g / t, 0.0)
        for x, (g, t) in zip(factors, snapshots, strict=True)
    )
    assert error == pytest.approx(np.linalg.norm(made - target) / np.linalg.norm(target), rel=1e-2)
    assert factors.sum() == pytest.approx(1.0, abs=0.02)
    few = coefficients([snapshots[0], snapshots[-1]], wanted)[1]
    assert few > error
