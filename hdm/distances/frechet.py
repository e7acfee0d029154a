"""The Fréchet distance of two sets of embeddings, and what it would be of endlessly many."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from hdm.distances.jackknife import Replicates, jackknifed

ENOUGH_TO_EXTRAPOLATE = 5_000
SUBSETS = 15  # as in arXiv 1911.07023
SMALLEST_SHARE = 0.1


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of the normal distributions fitted to two sets (Dowson and Landau 1982; the
    formula of FID, arXiv 1706.08500).

    Biased upwards if there are few samples for the number of dimensions: compare only sets of equal
    size.

    Args:
        first, second: (N, E) and (M, E), at least two rows each.

    Returns:
        |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½), at least 0.
    """
    first = first.astype(np.float64)
    second = second.astype(np.float64)
    one = np.atleast_2d(np.cov(first, rowvar=False))
    two = np.atleast_2d(np.cov(second, rowvar=False))
    root = _square_root(one)
    # Rounding may make an eigenvalue of 0 slightly negative.
    # tr (C₁ C₂)^½ = tr (C₁^½ C₂ C₁^½)^½, of a symmetric matrix.
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ two @ root), 0, None)).sum()
    apart = first.mean(0) - second.mean(0)
    return max(0.0, float(apart @ apart + np.trace(one) + np.trace(two) - 2 * cross))


def can_fit(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether both sets have more items than dimensions, without which a Fréchet distance says
    nothing.
    """
    size: int = first.shape[1]
    return min(len(first), len(second)) > size


def frechet_replicates(
    first: np.ndarray,
    second: np.ndarray,
    clusters: Sequence[Hashable],
    second_clusters: Sequence[Hashable],
) -> Replicates:
    """The Fréchet distance of (N, E) and (M, E) rows, whose prompts are `clusters` and
    `second_clusters`.
    """
    return jackknifed(
        lambda kept, also: frechet_distance(first[kept], second[also]), clusters, second_clusters
    )


def extrapolated_replicates(
    first: np.ndarray,
    second: np.ndarray,
    clusters: Sequence[Hashable],
    second_clusters: Sequence[Hashable],
) -> Replicates:
    """The Fréchet distance of endlessly many items (FID∞, arXiv 1911.07023): a line through the
    distances of 15 subsets, over one by their size, where that is 0.

    Args:
        first, second: (N, E) and (M, E), more than 4 E rows each.
        clusters, second_clusters: their prompts.
    """
    rng = np.random.default_rng(0)
    # An item keeps its place: leaving out a group takes it out of the same subsets.
    places = rng.permutation(len(first)) / len(first)
    second_places = rng.permutation(len(second)) / len(second)
    fewest = min(len(first), len(second))
    # Of too few items the distance does not lie on the line.
    smallest = max(SMALLEST_SHARE, 2 * first.shape[1] / fewest)
    shares = np.linspace(smallest, 1, SUBSETS)

    def measure(kept: np.ndarray, also: np.ndarray) -> float:
        biases = []
        distances = []
        for share in shares:
            one = first[kept & (places < share)]
            two = second[also & (second_places < share)]
            biases.append(1 / len(one) + 1 / len(two))
            distances.append(frechet_distance(one, two))
        _, at_zero = np.polyfit(biases, distances, 1)
        return float(at_zero)

    return jackknifed(measure, clusters, second_clusters)


def _square_root(symmetric: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    root: np.ndarray = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
