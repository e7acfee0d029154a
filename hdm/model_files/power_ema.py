"""Averages of the weights whose length is chosen after training (EDM2, arXiv 2312.02696, section 3
and appendix C).

At time t, counted in steps, the power-function average weighs the weights of time τ in proportion
to τ^γ. Its length σ_rel is the standard deviation of that profile as a share of t; it grows with
training, so that the beginning is forgotten at any γ. Two averages of different length, written
down now and then, are enough to make one of another length as a sum of what was written down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hdm.errors import InputError
from hdm.model_files.tensors import open_tensors

LONGEST = 0.28
"""Of the lengths: a plain mean over all of training has √(1/12) = 0.289."""
_NAME = re.compile(r"ema-(?P<length>[0-9.e-]+)-(?P<step>\d{8})\.safetensors")


def gamma_of(length: float) -> float:
    """The exponent γ ≥ 0 of a length σ_rel = √(γ+1) / ((γ+2)·√(γ+3)) (section 3.1): the largest
    root of (γ+2)²·(γ+3) = (γ+1)/σ².

    Raises:
        InputError: no power function has that length.
    """
    if not 0 < length <= LONGEST:
        raise InputError(
            f"an average of length {length} is outside (0, {LONGEST}]", do="0.05 to 0.2 are usual"
        )
    inverse = length**-2
    # The equation's left side is (γ+2)²·(γ+3) = γ³ + 7γ² + 16γ + 12.
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@dataclass(frozen=True)
class Snapshot:
    """A power-function average as it was at a step.

    Args:
        path: of its file, which its name tells the rest.
        length: σ_rel.
        step: optimizer steps done.
    """

    path: Path
    length: float
    step: int


def snapshot_name(track: str, step: int) -> str:
    """The file of one of a checkpoint's tracks at a step."""
    return f"{track}-{step:08d}.safetensors"


def find_snapshots(folder: Path) -> list[Snapshot]:
    """Those in a folder, in order of name."""
    snapshots = []
    for path in sorted(folder.glob("ema-*")):
        match = _NAME.fullmatch(path.name)
        if match:
            snapshots.append(Snapshot(path, float(match["length"]), int(match["step"])))
    return snapshots


def overlap(first: tuple[float, float], second: tuple[float, float]) -> float:
    """The inner product ∫ p·q dτ of two averages' profiles p(τ) = (γ+1)·τ^γ / t^(γ+1) on [0, t]
    (appendix C).

    Args:
        first, second: (γ, t) of each.
    """
    a, s = first
    b, t = second
    shorter = math.log(min(s, t))
    # In logarithms: t^γ overflows at the 10⁵ steps and γ = 50 of a real training.
    return (
        (a + 1)
        * (b + 1)
        / (a + b + 1)
        * math.exp((a + b + 1) * shorter - (a + 1) * math.log(s) - (b + 1) * math.log(t))
    )


def coefficients(
    snapshots: Sequence[tuple[float, float]], wanted: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """How to sum snapshots so that their profiles come closest to a wanted one's, by least squares
    (appendix C).

    Args:
        snapshots: (γ, t) of each.
        wanted: (γ, t).

    Returns:
        A factor for each snapshot, (n,) float64, and what is left: the norm of the difference of
        the profiles as a share of the wanted one's.
    """
    # The normal equations need the products of all profiles with each other and with the wanted
    # one.
    products = np.empty((len(snapshots), len(snapshots)))
    with_wanted = np.empty(len(snapshots))
    for row, snapshot in enumerate(snapshots):
        with_wanted[row] = overlap(snapshot, wanted)
        for column, other in enumerate(snapshots):
            products[row, column] = overlap(snapshot, other)
    own = overlap(wanted, wanted)
    # The profiles of one track are nearly parallel. Least squares loses fewer digits if all of them
    # are scaled to one norm.
    sizes = np.sqrt(np.diag(products))
    scaled = np.linalg.lstsq(products / np.outer(sizes, sizes), with_wanted / sizes, rcond=1e-13)[0]
    factors = scaled / sizes
    left = own - 2 * factors @ with_wanted + factors @ products @ factors
    return factors, math.sqrt(max(0.0, left) / own)


def synthesize(snapshots: Sequence[Snapshot], length: float) -> tuple[dict[str, Tensor], float]:
    """The power-function average of another length at the last snapshot's step.

    Args:
        snapshots: of one training.
        length: σ_rel.

    Returns:
        Parameter → average, float32, and how far its profile is from the wanted one, as
        `coefficients` tells it.

    Raises:
        InputError: the length is no power function's.
        DamagedError: a snapshot cannot be read.
    """
    # The wanted profile ends with training, as the last snapshot does.
    end = float(max(snapshot.step for snapshot in snapshots))
    profiles = [(gamma_of(snapshot.length), float(snapshot.step)) for snapshot in snapshots]
    factors, error = coefficients(profiles, (gamma_of(length), end))
    with ExitStack() as stack:
        files = [stack.enter_context(open_tensors(snapshot.path)) for snapshot in snapshots]
        averages = {}
        # Only one parameter of all snapshots is in memory at a time.
        for name in sorted(files[0].keys()):
            averages[name] = _summed([file.get_tensor(name) for file in files], factors)
    return averages, error


def _summed(tensors: Sequence[Tensor], factors: np.ndarray) -> Tensor:
    # Factors are large and of both signs, so terms nearly cancel: float32 would lose digits.
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, factor in zip(tensors, factors, strict=True):
        total.add_(tensor.double(), alpha=float(factor))
    return total.float()
