"""Shares with their uncertainty, and distances between two sets of embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

CONFIDENCE_95 = 1.959963984540054  # standard deviations
MMD_SIGMA, MMD_SCALE = 10.0, 1000.0


@dataclass(frozen=True)
class Share:
    """`right` of `total`, with Wilson's score interval at 95 % (Wilson 1927, JASA 22:209)."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share itself; 0 of nothing is 0."""
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound, in [0, 1]; (0, 1) of nothing."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = CONFIDENCE_95, self.total, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "right": self.right,
            "total": self.total,
            "share": self.value,
            "low": low,
            "high": high,
        }


@dataclass(frozen=True)
class Interval:
    """`mean` ± `half`: Student's t interval at 95 % of the mean of some values; `half` is None of a single one."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of at least one value."""
        count, mean = len(values), float(np.mean(values))
        if count < 2:
            return cls(mean, None)
        return cls(
            mean, float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count))
        )

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half


def mean_with_error(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard error of the mean and number of some values; None where there are too few."""
    count = len(values)
    return {
        "mean": float(np.mean(values)) if count else None,
        "standard_error": float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else None,
        "count": count,
    }


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of the normal distributions fitted to two sets (Dowson and Landau 1982; the formula of FID, arXiv 1706.08500).

    Biased upwards where there are few samples for the dimensions: compare only values of equally large sets.

    Args:
        first, second: (N, E) and (M, E), at least two rows each.

    Returns:
        |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½), at least 0.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = _square_root(np.atleast_2d(one))
    # tr (C₁ C₂)^½ = tr (C₁^½ C₂ C₁^½)^½, of a symmetric matrix.
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ np.atleast_2d(two) @ root), 0, None)).sum()
    apart = first.mean(0) - second.mean(0)
    return max(
        0.0,
        float(
            apart @ apart + np.trace(np.atleast_2d(one)) + np.trace(np.atleast_2d(two)) - 2 * cross
        ),
    )


def _square_root(symmetric: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, times 1000: CMMD's formula (arXiv 2401.09603), but unbiased.

    CMMD itself uses the V-statistic and ViT-L/14-336 embeddings; this is the U-statistic (Gretton et al. 2012, eq. 3) on whatever
    embeddings it is given, so that its expectation is 0 for two sets of one distribution, however small, and it may be negative.

    Args:
        first, second: (N, E) and (M, E) unit embeddings, at least two rows each.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    n, m = len(first), len(second)
    within_first = (_kernel(first, first).sum() - n) / (n * (n - 1))
    within_second = (_kernel(second, second).sum() - m) / (m * (m - 1))
    return float(MMD_SCALE * (within_first + within_second - 2 * _kernel(first, second).mean()))


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squared = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return np.exp(-np.clip(squared, 0, None) / (2 * MMD_SIGMA**2))
