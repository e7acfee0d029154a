"""The fit of outlines to a picture's content, each at its best place, size and rotation.

Outlines are signed distances from a table, negative inside. A pixel's cover is 1/2 -
distance/softness, clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from hdm.demo.others import OTHERS, shape
from hdm.demo.shapes import KINDS, SUBJECTS

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
        overlap: of both: the smaller cover over the larger, summed over pixels (intersection over
            union).
        other: the shape of OTHERS that overlaps most, and how much that is.
    """

    kind: str
    overlap: float
    other: str
    other_overlap: float

    @property
    def lead(self) -> float:
        return self.overlap - self.other_overlap


def best_fits(
    cover: np.ndarray, others: Collection[str] = tuple(OTHERS), kinds: Sequence[str] = KINDS
) -> Fits:
    """The kind and the other shape that overlap most.

    Args:
        cover: (H, W), the share of every pixel that the object covers; some of it is above 0.
        others: names of the shapes of OTHERS to compare with.
        kinds: those of KINDS and SUBJECTS that it may be.
    """
    rows, columns = np.nonzero(cover > 0.02)
    # With a margin, because soft edges reach beyond the object.
    top = max(int(rows.min()) - 2, 0)
    left = max(int(columns.min()) - 2, 0)
    cover = cover[top : rows.max() + 3, left : columns.max() + 3]
    names = [*kinds, *others]
    starts = _starts(names, cover)
    # A coarse overlap at the starting point selects the few shapes that are worth fitting.
    before = _overlaps(_place(names, starts, cover.shape), starts, LAST_SOFTNESS, cover)
    nearest = _largest(before, range(len(kinds)), CANDIDATES["kinds"])
    rest = _largest(before, range(len(kinds), len(names)), CANDIDATES["others"])
    chosen = [*nearest, *rest]
    # One batch for both: at this size NumPy's calls cost more than their arithmetic.
    overlaps = _fit([names[number] for number in chosen], starts[chosen], cover)
    kind = int(overlaps[: len(nearest)].argmax())
    other = len(nearest) + int(overlaps[len(nearest) :].argmax())
    return Fits(
        names[chosen[kind]], float(overlaps[kind]), names[chosen[other]], float(overlaps[other])
    )


def _largest(values: np.ndarray, numbers: Collection[int], count: int) -> list[int]:
    """The `count` of `numbers` whose values are largest, in descending order."""
    return sorted(numbers, key=lambda number: -values[number])[:count]


def _fit(names: Sequence[str], values: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """The overlaps after damped Gauss–Newton steps on (x, y, size, turn) with ever sharper edges.

    Args:
        names: of S shapes.
        values: (S, 4), where the steps begin.
        cover: (H, W).

    Returns:
        (S,): of each shape, at the softness of EDGES with which it overlaps most.
    """
    diagonal = np.arange(4)
    for share in SOFTNESS:
        softness = np.maximum(share * values[:, 2], LAST_SOFTNESS)
        placed = _place(names, values, cover.shape)
        drawn = _drawn(placed, values, softness)
        slopes = _slopes(placed, values, drawn, softness)
        hessian = slopes @ slopes.transpose(0, 2, 1)
        # Marquardt's scaling: the four values have different units (pixels and radians).
        hessian[:, diagonal, diagonal] *= 1 + DAMPING
        # A circle does not change when turned; without this its system would be singular.
        hessian[:, diagonal, diagonal] += 1e-9
        gradient = slopes @ (cover - drawn).reshape(len(names), -1, 1)
        values = values + np.linalg.solve(hessian, gradient)[:, :, 0]
        values[:, 3] = np.clip(values[:, 3], -MAX_TURN, MAX_TURN)
        # A step may overshoot, and the size divides.
        values[:, 2] = np.maximum(values[:, 2], 2.0)
    placed = _place(names, values, cover.shape)
    best: np.ndarray = np.max([_overlaps(placed, values, edge, cover) for edge in EDGES], axis=0)
    return best


def _overlaps(placed: Placed, values: np.ndarray, softness: float, cover: np.ndarray) -> np.ndarray:
    """Intersection over union of S shapes with what is there, (S,)."""
    drawn = _drawn(placed, values, np.full(len(values), softness))
    smaller = np.minimum(drawn, cover).sum((1, 2))
    # The smaller and the larger of two add up to both.
    larger = drawn.sum((1, 2)) + cover.sum() - smaller
    overlaps: np.ndarray = smaller / larger
    return overlaps


def _starts(names: Sequence[str], cover: np.ndarray) -> np.ndarray:
    """(S, 4): x, y, size and turn of each shape with the cover's area about its centre of
    gravity.
    """
    total = cover.sum()
    x = cover.sum(0) @ (np.arange(cover.shape[1]) + 0.5) / total
    y = cover.sum(1) @ (np.arange(cover.shape[0]) + 0.5) / total
    moments = np.array([_moments(name) for name in names])
    size = np.sqrt(total) / moments[:, 2]
    return np.stack([x - moments[:, 0] * size, y - moments[:, 1] * size, size, 0 * size], 1)


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


@dataclass(frozen=True)
class Placed:
    """S shapes as they lie on a window of (H, W) pixels; all in units of the shapes' outlines.

    Args:
        along, down: (S, H, W), where each pixel lies in the shape's own axes.
        distance: (S, H, W), of each pixel from the outline, less than 0 inside.
        right, below: (S, H, W), the distance's slopes in these axes.
    """

    along: np.ndarray
    down: np.ndarray
    distance: np.ndarray
    right: np.ndarray
    below: np.ndarray


def _place(names: Sequence[str], values: np.ndarray, shape: tuple[int, ...]) -> Placed:
    """Look up the distances of all pixels of a window from shapes at `values`, (S, 4)."""
    left, top, size, turn = values.T[:, :, None]
    cos = np.cos(turn) / size
    sin = np.sin(turn) / size
    x = np.arange(shape[1]) + 0.5 - left
    y = np.arange(shape[0]) + 0.5 - top
    along = (x * cos)[:, None, :] + (y * sin)[:, :, None]
    down = (y * cos)[:, :, None] - (x * sin)[:, None, :]
    scale = (SIDE - 1) / (2 * REACH)
    column = (along + REACH) * scale
    row = (down + REACH) * scale
    nearest_column = np.rint(column).clip(0, SIDE - 1)
    nearest_row = np.rint(row).clip(0, SIDE - 1)
    table = _tables()
    first = np.array([_number(name) for name in names])[:, None, None] * SIDE**2
    cell = (nearest_row * SIDE + nearest_column + first).astype(np.intp)
    distance, right, below = [values.take(cell) for values in table]
    # From the nearest place of the table along its slopes, which is enough between places this
    # close.
    distance += (right * (column - nearest_column) + below * (row - nearest_row)) / scale
    return Placed(along, down, distance, right, below)


def _drawn(placed: Placed, values: np.ndarray, softness: np.ndarray) -> np.ndarray:
    """The share of every pixel that each shape covers, (S, H, W), at a softness (S,) in pixels."""
    sharpness = (values[:, 2] / softness)[:, None, None]
    shares: np.ndarray = np.clip(0.5 - placed.distance * sharpness, 0, 1)
    return shares


def _slopes(
    placed: Placed, values: np.ndarray, drawn: np.ndarray, softness: np.ndarray
) -> np.ndarray:
    """Derivatives of `drawn` by the four values, (S, 4, H · W)."""
    size, turn = values[:, 2:].T[:, :, None, None]
    cos = np.cos(turn)
    sin = np.sin(turn)
    right = placed.right
    below = placed.below
    on_edge = (drawn > 0) & (drawn < 1)
    weight = np.where(on_edge, -1 / softness[:, None, None], 0)
    slopes = np.empty((len(values), 4, *drawn.shape[1:]))
    slopes[:, 0] = below * sin - right * cos
    slopes[:, 1] = -right * sin - below * cos
    slopes[:, 2] = placed.distance - right * placed.along - below * placed.down
    slopes[:, 3] = (right * placed.down - below * placed.along) * size
    slopes *= weight[:, None]
    return slopes.reshape(len(values), 4, -1)


@cache
def _number(name: str) -> int:
    """Where a shape stands in the tables."""
    return (*KINDS, *OTHERS, *SUBJECTS).index(name)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance and slopes of every shape, one after the other; (shapes · SIDE · SIDE,) each."""
    tables = np.stack([_table(name) for name in (*KINDS, *OTHERS, *SUBJECTS)], 1)
    distance, right, below = tables.reshape(3, -1)
    return distance, right, below


@cache
def _table(name: str) -> np.ndarray:
    """(3, SIDE, SIDE): how far each place lies outside the shape, in its units, less than 0 inside;
    and the slopes of that.
    """
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
        edge = second - first
        apart = places - first
        if not edge.any():
            continue
        share = np.clip(apart @ edge / (edge @ edge), 0, 1)
        nearest = np.minimum(nearest, ((apart - share[:, None] * edge) ** 2).sum(1))
        if edge[1]:  # a ray that crosses the outline an odd number of times begins inside
            crossed = (first[1] > places[:, 1]) != (second[1] > places[:, 1])
            inside ^= crossed & (apart[:, 0] < edge[0] * apart[:, 1] / edge[1])
    distance: np.ndarray = np.where(inside, -1, 1) * np.sqrt(nearest)
    return distance
