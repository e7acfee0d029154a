"""How well outlines fit what a picture shows, each at the place, size and turn that fit best.

Outlines are signed distances, looked up in a table: negative inside. A pixel is covered by 1/2 - distance/softness, cut to [0, 1].
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

import numpy as np

from hdm.demo.others import OTHERS, shape
from hdm.demo.shapes import KINDS

SIDE, REACH = 128, 1.2  # of a table: places a side, and half a side in units of the outline
MAX_TURN = 0.3  # radians; scenes turn their objects by 0.09 at most
SOFTNESS = (0.25, 0.2, 0.15, 0.1, 0.1, 0.07, 0.07, 0.07)  # of the size: soft edges pull from afar
LAST_SOFTNESS = 1.8  # pixels, about the autoencoder's
EDGES = (1.0, 1.8, 2.6, 4.5)  # pixels: the softness with which a shape overlaps most counts
DAMPING = 1e-3
CANDIDATES = {"kinds": 4, "others": 12}  # that are fitted: those that overlap most before


@dataclass(frozen=True)
class Fits:
    """What fits best.

    Args:
        kind: the kind that overlaps most with what is there.
        overlap: of both: the smaller cover over the larger, summed over pixels (intersection over union).
        other: the shape of OTHERS that overlaps most, and how much that is.
    """

    kind: str
    overlap: float
    other: str
    other_overlap: float

    @property
    def lead(self) -> float:
        return self.overlap - self.other_overlap


def best_fits(cover: np.ndarray, others: Collection[str] = tuple(OTHERS)) -> Fits:
    """The kind and the other shape that overlap most.

    Args:
        cover: (H, W), the share of every pixel that the object covers; some of it is above 0.
        others: names of the shapes of OTHERS to compare with.
    """
    rows, columns = np.nonzero(cover > 0.02)
    top, left = (max(int(place.min()) - 2, 0) for place in (rows, columns))
    cover = cover[top : rows.max() + 3, left : columns.max() + 3]
    y, x = (place.ravel() + 0.5 for place in np.mgrid[: cover.shape[0], : cover.shape[1]])
    kind, overlap = _best(KINDS, cover.ravel(), x, y, CANDIDATES["kinds"])
    other, other_overlap = _best(others, cover.ravel(), x, y, CANDIDATES["others"])
    return Fits(kind, overlap, other, other_overlap)


def _best(
    names: Collection[str], cover: np.ndarray, x: np.ndarray, y: np.ndarray, count: int
) -> tuple[str, float]:
    """The shape that overlaps most, of the `count` that do before they are fitted; and how much."""
    total = cover.sum()
    middle = (cover * x).sum() / total, (cover * y).sum() / total
    starts = {name: _start(name, total, middle) for name in names}
    before = {
        name: _overlap(_covered(_table(name), start, x, y)[0], cover)
        for name, start in starts.items()
    }
    candidates = sorted(names, key=lambda name: -before[name])[:count]
    overlaps = {name: _fit(_table(name), starts[name], cover, x, y) for name in candidates}
    best = max(overlaps, key=lambda name: overlaps[name])
    return best, overlaps[best]


def _fit(
    table: np.ndarray, values: np.ndarray, cover: np.ndarray, x: np.ndarray, y: np.ndarray
) -> float:
    """The overlap after damped Gauss–Newton steps on (x, y, size, turn) with ever sharper edges."""
    for share in SOFTNESS:
        softness = max(share * values[2], LAST_SOFTNESS)
        drawn, slopes = _covered(table, values, x, y, softness)
        hessian = slopes @ slopes.T
        hessian[np.diag_indices(4)] *= 1 + DAMPING
        hessian[np.diag_indices(4)] += 1e-9
        values = values + np.linalg.solve(hessian, slopes @ (cover - drawn))
        values[3] = np.clip(values[3], -MAX_TURN, MAX_TURN)
        values[2] = max(values[2], 2.0)
    return max(_overlap(_covered(table, values, x, y, edge)[0], cover) for edge in EDGES)


def _overlap(drawn: np.ndarray, cover: np.ndarray) -> float:
    return float(np.minimum(drawn, cover).sum() / np.maximum(drawn, cover).sum())


def _start(name: str, area: float, middle: tuple[float, float]) -> np.ndarray:
    """(x, y, size, turn) of the shape with that area about that centre of gravity."""
    x, y, unit = _moments(name)
    size = np.sqrt(area) / unit
    return np.array([middle[0] - x * size, middle[1] - y * size, size, 0.0])


@cache
def _moments(name: str) -> tuple[float, float, float]:
    """Centre of gravity (x, y) of the shape, and the root of its area."""
    y, x = np.nonzero(_table(name)[0] < 0)
    step = 2 * REACH / (SIDE - 1)
    return (
        float(x.mean()) * step - REACH,
        float(y.mean()) * step - REACH,
        float(np.sqrt(len(x))) * step,
    )


def _covered(
    table: np.ndarray,
    values: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    softness: float = LAST_SOFTNESS,
) -> tuple[np.ndarray, np.ndarray]:
    """The share of every pixel that the shape covers (N,), and its derivatives by the four values (4, N)."""
    left, top, size, turn = values
    cos, sin = np.cos(turn), np.sin(turn)
    along = ((x - left) * cos + (y - top) * sin) / size
    down = ((y - top) * cos - (x - left) * sin) / size
    scale = (SIDE - 1) / (2 * REACH)
    column, row = ((place + REACH) * scale for place in (along, down))
    nearest = np.rint(row).clip(0, SIDE - 1), np.rint(column).clip(0, SIDE - 1)
    distance, right, below = table[:, nearest[0].astype(int), nearest[1].astype(int)]
    distance = distance + (right * (column - nearest[1]) + below * (row - nearest[0])) / scale
    drawn = np.clip(0.5 - distance * size / softness, 0, 1)
    slopes = np.stack(
        [
            -right * cos + below * sin,
            -right * sin - below * cos,
            distance - right * along - below * down,
            (right * down - below * along) * size,
        ]
    )
    return drawn, np.where((drawn > 0) & (drawn < 1), -slopes / softness, 0)


@cache
def _table(name: str) -> np.ndarray:
    """(3, SIDE, SIDE): how far each place lies outside the shape, in its units, less than 0 inside; and the slopes of that."""
    corners, hole = shape(name)
    steps = np.linspace(-REACH, REACH, SIDE)
    places = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    distance = _distance(corners, places)
    if hole is not None:
        distance = np.maximum(distance, -_distance(hole, places))
    distance = distance.reshape(SIDE, SIDE)
    below, right = np.gradient(distance, steps[1] - steps[0])
    return np.stack([distance, right, below])


def _distance(corners: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Signed distances of places (N, 2) from a closed outline (M, 2): (N,)."""
    nearest = np.full(len(places), np.inf)
    inside = np.zeros(len(places), bool)
    for first, second in zip(corners, np.roll(corners, -1, 0), strict=True):
        edge, apart = second - first, places - first
        if not edge.any():
            continue
        share = np.clip(apart @ edge / (edge @ edge), 0, 1)
        nearest = np.minimum(nearest, ((apart - share[:, None] * edge) ** 2).sum(1))
        if edge[1]:  # how often a ray meets the outline tells the side
            crossed = (first[1] > places[:, 1]) != (second[1] > places[:, 1])
            inside ^= crossed & (apart[:, 0] < edge[0] * apart[:, 1] / edge[1])
    return np.where(inside, -1, 1) * np.sqrt(nearest)
