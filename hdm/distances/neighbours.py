"""Whether generated items lie where real ones do, and the other way round, by nearest neighbours.

Precision and recall: Kynkäänniemi et al. 2019, arXiv 1904.06991. Density and coverage: Naeem et al.
2020, arXiv 2002.09797. An item's ball reaches to its k-th nearest neighbour of its own set; an item
is inside where it is nearer than that, not as near.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from hdm.distances.jackknife import BY_HALVES, HALF_ODDS, Replicates, halves

ROWS_AT_ONCE = 256
CANDIDATES = 64  # half of them are kept, which is more than enough neighbours
PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5


def precision_and_recall(
    generated: np.ndarray,
    real: np.ndarray,
    clusters: Sequence[Hashable],
    real_clusters: Sequence[Hashable],
    neighbours: int = PRECISION_NEIGHBOURS,
) -> dict[str, Replicates]:
    """The share of generated items inside a real one's ball, and of real ones inside a generated
    one's.

    Args:
        generated, real: (N, E) and (M, E); more than `neighbours` each.
        clusters, real_clusters: the prompt of each row.
        neighbours: k.
    """
    kept = halves(clusters)
    real_kept = halves(real_clusters)
    balls = _nearest(generated, generated, neighbours, kept, same=True)
    real_balls = _nearest(real, real, neighbours, real_kept, same=True)
    distinct = len(set(clusters))
    precise = _inside(generated, real, real_balls) > 0
    without, real_without = _means(precise, kept)
    precision = _replicates(precise[0].mean(), without, real_without, distinct)
    recalled = _inside(real, generated, balls) > 0
    real_without, without = _means(recalled, real_kept)
    recall = _replicates(recalled[0].mean(), without, real_without, distinct)
    return {"precision": precision, "recall": recall}


def density_and_coverage(
    generated: np.ndarray,
    real: np.ndarray,
    clusters: Sequence[Hashable],
    real_clusters: Sequence[Hashable],
    neighbours: int = DENSITY_NEIGHBOURS,
) -> dict[str, Replicates]:
    """In how many real balls a generated item lies, by k, and the share of real balls with a
    generated item inside; as `precision_and_recall`.
    """
    kept = halves(clusters)
    real_kept = halves(real_clusters)
    real_balls = _nearest(real, real, neighbours, real_kept, same=True)
    distinct = len(set(clusters))
    dense = _inside(generated, real, real_balls) / neighbours
    without, real_without = _means(dense, kept)
    density = _replicates(dense[0].mean(), without, real_without, distinct)
    # Of fewer generated images others are nearest; of fewer real ones balls are larger.
    nearest = _nearest(real, generated, 1, kept, same=False)
    without = (nearest[1:] < real_balls[0]).mean(1)
    covered = nearest[0] < real_balls
    real_without = np.array(
        [row[keep].mean() for row, keep in zip(covered[1:], real_kept, strict=True)]
    )
    coverage = _replicates(covered[0].mean(), without, real_without, distinct)
    return {"density": density, "coverage": coverage}


def _replicates(
    value: float, without: np.ndarray, real_without: np.ndarray, distinct: int
) -> Replicates:
    odds = (HALF_ODDS, HALF_ODDS)
    return Replicates(float(value), (without, real_without), odds, distinct, BY_HALVES)


def _means(values: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each half of the items themselves, and with each half of those that they are
    compared with.

    Args:
        values: (1 + H, N), with all others, and with each half of them.
        kept: (H, N) the items' own halves.
    """
    own = np.array([values[0, keep].mean() for keep in kept])
    return own, values[1:].mean(1)


def _nearest(
    rows: np.ndarray, others: np.ndarray, number: int, kept: np.ndarray, *, same: bool
) -> np.ndarray:
    """The squared distance of each row to its nearest others, the `number`-th of them: (1 + H, N),
    among all, and among each half of the others.

    Args:
        kept: (H, M) the halves of the others.
        same: whether rows and others are the same items; none is its own neighbour, and those that
            a half leaves out have -1.
    """
    found = np.empty((1 + len(kept), len(rows)))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        distances = _squared_distances(rows[block], others)
        if same:
            own = np.arange(len(distances))
            distances[own, start + own] = np.inf
        nearest, ascending = _candidates(distances)
        found[0, block] = ascending[:, number - 1]
        for place, keep in enumerate(kept, 1):
            found[place, block] = _nearest_kept(distances, nearest, ascending, keep, number)
    if same:
        found[1:][~kept] = -1
    return found


def _candidates(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest CANDIDATES of each row, (B, C) places and distances, the nearest first."""
    count = min(CANDIDATES, distances.shape[1])
    places = np.argpartition(distances, count - 1, 1)[:, :count]
    near = np.take_along_axis(distances, places, 1)
    order = np.argsort(near, 1)
    return np.take_along_axis(places, order, 1), np.take_along_axis(near, order, 1)


def _nearest_kept(
    distances: np.ndarray, nearest: np.ndarray, ascending: np.ndarray, keep: np.ndarray, number: int
) -> np.ndarray:
    """The distance of each row to the `number`-th nearest that is kept, (B,)."""
    num_kept = np.cumsum(keep[nearest], 1)
    place = (num_kept >= number).argmax(1)
    found: np.ndarray = ascending[np.arange(len(place)), place]
    # Where a prompt has many pictures, none of the nearest may be kept.
    short = num_kept[:, -1] < number
    if short.any():
        found[short] = np.partition(distances[short][:, keep], number - 1, 1)[:, number - 1]
    return found


def _inside(rows: np.ndarray, others: np.ndarray, balls: np.ndarray) -> np.ndarray:
    """In how many of the others' balls each row lies, (1 + H, N).

    Args:
        balls: (1 + H, M) squared radii, as `_nearest` gives them.
    """
    counts = np.empty((len(balls), len(rows)), np.int64)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        distances = _squared_distances(rows[block], others)
        # Few rows lie in any ball, and each half is counted among those alone.
        inner, ball = np.nonzero(distances < balls.max(0))
        near = distances[inner, ball]
        for place, radii in enumerate(balls):
            counted = np.bincount(inner[near < radii[ball]], minlength=len(distances))
            counts[place, block] = counted
    return counts


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first = first.astype(np.float64)
    second = second.astype(np.float64)
    squared: np.ndarray = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    # The expanded square may round to slightly below 0.
    np.clip(squared, 0, None, out=squared)
    return squared
