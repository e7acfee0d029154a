"""A detector that knows scenes: which objects a picture shows, from its pixels alone.

Objects are what stands out from a pale ground; their colour is the nearest of the palette, their kind the best matching
outline after bringing centre and radius of gyration to one size. Noise, blank and crowded pictures show nothing to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from hdm.demo.scenes import COLOURS
from hdm.demo.shapes import KINDS, mask

PALE = 150  # darkest channel of what may be ground
MIN_GROUND = 0.35  # share of the picture that has to be ground
MIN_CONTRAST = (
    50  # grey levels between an object and the ground, in the channel where they differ most
)
MIN_AREA, MAX_AREA = 0.012, 0.45  # of an object, in squares of the shorter side
MAX_COLOUR_DISTANCE = 85.0  # to the nearest colour of the palette, in RGB
MIN_MATCH = 0.90  # correlation with the best outline
MAX_THINGS = 5  # a picture of more is noise, or a pattern
MIN_EXPLAINED = 0.95  # share of the picture that is ground, object, or an edge between them
GRID, SPAN = 28, 2.1  # normalised masks: pixels a side, and half a side in radii of gyration


@dataclass(frozen=True)
class Found:
    """One object.

    Args:
        kind: one of KINDS; None if no outline fits.
        colour: a name of COLOURS; None if none is near.
        centre: (x, y) as shares of width and height, of the box around it.
        size: its longer side as a share of the picture's shorter side.
        match: correlation with the best outline, at most 1.
    """

    kind: str | None
    colour: str | None
    centre: tuple[float, float]
    size: float
    match: float


def detect(pixels: np.ndarray) -> list[Found]:
    """The objects in a picture, the largest first.

    Args:
        pixels: (H, W, 3) uint8.

    Returns:
        What was found; empty for pictures that are not scenes: no pale ground, or much that is neither ground nor object.
    """
    ground = _ground(pixels)
    if ground is None:
        return []
    difference = ground - pixels
    contrast = np.clip(difference, 0, None).max(2)
    explained = np.abs(difference).max(2) < MIN_CONTRAST
    labels, _ = ndimage.label(contrast > MIN_CONTRAST)
    found = []
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        region = labels == number
        if MIN_AREA < region[window].sum() / min(region.shape) ** 2 < MAX_AREA:
            full = float(np.percentile(contrast[region], 75))
            # Half the contrast is where the edge runs, however soft it is.
            inside = region & (contrast > full / 2)
            thing = _examine(pixels, contrast / full, inside)
            if thing.kind or thing.colour:
                found.append(thing)
                explained |= ndimage.binary_dilation(inside, iterations=3)
    is_scene = len(found) <= MAX_THINGS and explained.mean() > MIN_EXPLAINED
    return sorted(found, key=lambda thing: -thing.size) if is_scene else []


def _ground(pixels: np.ndarray) -> np.ndarray | None:
    """The ground's typical colour, or None if there is no pale ground."""
    pale = pixels.min(2) > PALE
    return np.median(pixels[pale], axis=0) if pale.mean() > MIN_GROUND else None


def _examine(pixels: np.ndarray, contrast: np.ndarray, inside: np.ndarray) -> Found:
    """What lies `inside`; contrast is 0 on the ground and about 1 in the object."""
    height, width = inside.shape
    core = inside & (contrast >= np.percentile(contrast[inside], 75))
    cover = np.where(ndimage.binary_dilation(inside, iterations=2), np.clip(contrast, 0, 1), 0)
    kind, match = _nearest_kind(_normalise(cover))
    rows, columns = np.nonzero(inside)
    return Found(
        kind=kind if match > MIN_MATCH else None,
        colour=_nearest_colour(np.median(pixels[core], axis=0)),
        centre=(
            float(columns.min() + columns.max() + 1) / 2 / width,
            float(rows.min() + rows.max() + 1) / 2 / height,
        ),
        size=float(max(np.ptp(rows), np.ptp(columns)) + 1) / min(height, width),
        match=match,
    )


def _nearest_colour(rgb: np.ndarray) -> str | None:
    distances = {
        name: float(np.linalg.norm(rgb - np.asarray(value))) for name, value in COLOURS.items()
    }
    name = min(distances, key=lambda colour: distances[colour])
    return name if distances[name] < MAX_COLOUR_DISTANCE else None


def _normalise(cover: np.ndarray) -> np.ndarray:
    """The mask at one place and size: (GRID · GRID,), mean 0, norm 1."""
    y, x = np.mgrid[: cover.shape[0], : cover.shape[1]] + 0.5
    total = cover.sum()
    cx, cy = (cover * x).sum() / total, (cover * y).sum() / total
    radius = np.sqrt((cover * ((x - cx) ** 2 + (y - cy) ** 2)).sum() / total)
    steps = np.linspace(-SPAN, SPAN, GRID) * radius
    rows, columns = np.meshgrid(cy + steps - 0.5, cx + steps - 0.5, indexing="ij")
    values = ndimage.map_coordinates(cover, [rows, columns], order=1, mode="constant").ravel()
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)


@cache
def _outlines() -> tuple[tuple[str, ...], np.ndarray]:
    """Every kind at several angles and softnesses, normalised: names, and (N, GRID · GRID)."""
    names, masks = [], []
    for kind in KINDS:
        for degrees in (-10, -5, 0, 5, 10):
            cover, left, top = mask(kind, 160, 160, (80.0, 80.0), 80.0, np.radians(degrees))
            canvas = np.zeros((160, 160), np.float32)
            canvas[top : top + cover.shape[0], left : left + cover.shape[1]] = cover
            for softness in (0.0, 3.0, 7.0):
                names.append(kind)
                masks.append(_normalise(ndimage.gaussian_filter(canvas, softness)))
    return tuple(names), np.stack(masks)


def _nearest_kind(normalised: np.ndarray) -> tuple[str, float]:
    names, masks = _outlines()
    matches = masks @ normalised
    best = int(matches.argmax())
    return names[best], float(matches[best])
