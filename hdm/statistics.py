"""Shares with their uncertainty, and distances between two sets of embeddings."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

CONFIDENCE_95 = 1.959963984540054  # standard deviations
# As in CMMD (arXiv 2401.09603).
MMD_SIGMA = 10.0
MMD_SCALE = 1000.0
REPLICATES = 200  # of a bootstrap


@dataclass(frozen=True)
class Share:
    """`right` of `total`, with Wilson's score interval at 95 % (Wilson 1927, JASA 22:209).

    Args:
        right, total: counts.
        distinct: how many of `total` are independent, if several answer the same question; None:
            all.
    """

    right: int
    total: int
    distinct: int | None = None

    @property
    def value(self) -> float:
        """The share itself; 0 of nothing is 0."""
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound, in [0, 1]; (0, 1) of nothing."""
        if not self.total:
            return 0.0, 1.0
        z = CONFIDENCE_95
        p = self.value
        n = self.total if self.distinct is None else self.distinct
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "right": self.right,
            "total": self.total,
            **({} if self.distinct is None else {"distinct": self.distinct}),
            "share": self.value,
            "low": low,
            "high": high,
        }


@dataclass(frozen=True)
class Interval:
    """`mean` ± `half`: Student's t interval at 95 % for the mean of some values; `half` is None for
    a single value.
    """

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of at least one value."""
        count = len(values)
        mean = float(np.mean(values))
        if count < 2:
            return cls(mean, None)
        return cls(
            mean, float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count))
        )

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half


def mean_with_error(
    values: np.ndarray, clusters: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Mean, standard error of the mean and number of values; None if there are too few.

    Args:
        values: (N,).
        clusters: the cluster of each value; values of one cluster may depend on each other, so the
            error is cluster-robust (Liang and Zeger 1986) and `distinct` counts the clusters. None:
            all values are independent.
    """
    count = len(values)
    numbers = np.arange(count) if clusters is None else _numbered(clusters)
    distinct = int(numbers.max()) + 1 if count else 0
    error = None
    if distinct > 1:
        # With the usual correction for few clusters.
        sums = np.bincount(numbers, values - np.mean(values))
        error = math.sqrt(distinct / (distinct - 1) * float(sums @ sums)) / count
    return {
        "mean": float(np.mean(values)) if count else None,
        "standard_error": error,
        "count": count,
        **({} if clusters is None else {"distinct": distinct}),
    }


def _numbered(clusters: Sequence[Hashable]) -> np.ndarray:
    """Each item's cluster as a number, in order of first appearance; (N,)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in clusters], np.int64)


def compare_with_reference(
    reference: np.ndarray,
    sets: Mapping[str, np.ndarray],
    reference_clusters: Sequence[Hashable],
    clusters: Sequence[Hashable],
) -> dict[str, dict[str, dict[str, float]]]:
    """Fréchet and kernel distances of two matched sets to a reference, and the difference between
    them, with 95 % intervals.

    Intervals are 1.96 standard errors of a bootstrap that resamples clusters, of the reference and,
    identically, of both sets. The effects of the reference and of the choice of prompts on both
    sets therefore cancel in the difference. If a distance is due to chance alone, its interval is
    up to twice as wide as necessary.

    Args:
        reference: (M, E) unit embeddings, at least two clusters of them.
        sets: name → (N, E) unit embeddings; two sets, whose rows correspond to each other.
        reference_clusters, clusters: the cluster of each row of the reference, and of both sets.

    Returns:
        `frechet` and `kernel`, each: name of a set, or `difference` (first minus second), → `value`
        and `half`, the interval's half width.
    """
    (first, one), (second, two) = sets.items()
    kernels = Kernels(reference, one), Kernels(reference, two)

    def measured(held: np.ndarray | None, drawn: np.ndarray | None) -> list[float]:
        distances = [frechet_distance(reference, rows, held, drawn) for rows in (one, two)]
        distances += [kernel.distance(held, drawn) for kernel in kernels]
        return [
            *distances[:2],
            distances[0] - distances[1],
            *distances[2:],
            distances[2] - distances[3],
        ]

    # Two Fréchet distances and their difference, then the same of kernel distances.
    values = measured(None, None)
    draws = zip(_bootstrap(reference_clusters, 0), _bootstrap(clusters, 1), strict=True)
    errors = np.std([measured(held, drawn) for held, drawn in draws], axis=0, ddof=1)
    distances = []
    for value, error in zip(values, errors, strict=True):
        distances.append({"value": value, "half": float(CONFIDENCE_95 * error)})
    names = (first, second, "difference")
    return {
        "frechet": dict(zip(names, distances[:3], strict=True)),
        "kernel": dict(zip(names, distances[3:], strict=True)),
    }


def _bootstrap(clusters: Sequence[Hashable], seed: int) -> Iterator[np.ndarray]:
    """How often each item occurs in a bootstrap sample of the clusters; (N,) integers for each
    replicate.
    """
    numbers = _numbered(clusters)
    total = int(numbers.max()) + 1
    rng = np.random.default_rng(seed)
    for _ in range(REPLICATES):
        drawn = np.bincount(rng.integers(total, size=total), minlength=total)
        while np.count_nonzero(drawn) < 2:  # a single cluster has no spread
            drawn = np.bincount(rng.integers(total, size=total), minlength=total)
        yield drawn[numbers]


def frechet_distance(
    first: np.ndarray,
    second: np.ndarray,
    first_counts: np.ndarray | None = None,
    second_counts: np.ndarray | None = None,
) -> float:
    """Fréchet distance of the normal distributions fitted to two sets (Dowson and Landau 1982; the
    formula of FID, arXiv 1706.08500).

    Biased upwards if there are few samples for the number of dimensions: compare only sets of equal
    size.

    Args:
        first, second: (N, E) and (M, E), at least two rows each.
        first_counts, second_counts: (N,) and (M,) integers, how often each row counts; None: once.

    Returns:
        |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½), at least 0.
    """
    first = first.astype(np.float64)
    second = second.astype(np.float64)
    one = np.cov(first, rowvar=False, fweights=first_counts)
    two = np.cov(second, rowvar=False, fweights=second_counts)
    root = _square_root(np.atleast_2d(one))
    # Rounding may make an eigenvalue of 0 slightly negative.
    # tr (C₁ C₂)^½ = tr (C₁^½ C₂ C₁^½)^½, of a symmetric matrix.
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ np.atleast_2d(two) @ root), 0, None)).sum()
    apart = np.average(first, 0, first_counts) - np.average(second, 0, second_counts)
    return max(
        0.0,
        float(
            apart @ apart + np.trace(np.atleast_2d(one)) + np.trace(np.atleast_2d(two)) - 2 * cross
        ),
    )


def _square_root(symmetric: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    root: np.ndarray = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


class Kernels:
    """Gaussian kernels of all pairs of rows, computed once for the distances of many samples of
    them.

    Args:
        first, second: (N, E) and (M, E) unit embeddings, at least two rows each.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        first = first.astype(np.float64)
        second = second.astype(np.float64)
        self.first = _kernel(first, first)
        self.second = _kernel(second, second)
        self.between = _kernel(first, second)

    def distance(
        self, first_counts: np.ndarray | None = None, second_counts: np.ndarray | None = None
    ) -> float:
        """Squared maximum mean discrepancy, times 1000: CMMD's formula (arXiv 2401.09603), but
        unbiased.

        CMMD itself uses the V-statistic and ViT-L/14-336 embeddings; this is the U-statistic
        (Gretton et al. 2012, eq. 3) on whatever embeddings it is given, so that its expectation is
        0 for two sets of one distribution, however small, and it may be negative.

        Args:
            first_counts, second_counts: (N,) and (M,) integers, how often each row counts; None:
                once.
        """
        one = np.ones(len(self.first)) if first_counts is None else first_counts.astype(np.float64)
        two = (
            np.ones(len(self.second)) if second_counts is None else second_counts.astype(np.float64)
        )
        between = one @ self.between @ two / (one.sum() * two.sum())
        within = _within(self.first, one) + _within(self.second, two)
        return float(MMD_SCALE * (within - 2 * between))


def _within(kernel: np.ndarray, counts: np.ndarray) -> float:
    """The mean over pairs of different rows; a row's kernel with itself is 1."""
    total = counts.sum()
    return float((counts @ kernel @ counts - total) / (total * (total - 1)))


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squared = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    # The expanded square may round to slightly below 0.
    similarity: np.ndarray = np.exp(-np.clip(squared, 0, None) / (2 * MMD_SIGMA**2))
    return similarity
