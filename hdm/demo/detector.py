"""A detector for scenes: finds a picture's objects from its pixels alone.

Objects stand out from a pale background. Their colour is the nearest in the palette; their kind is
the best-fitting outline, if it fits well enough, so other shapes, blobs and halves have no kind. In
noise, blank and crowded pictures it finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hdm.demo.fitting import Fits, best_fits
from hdm.demo.scenes import COLOURS
from hdm.demo.shapes import KINDS

PALE = 150  # darkest channel of what may be ground
MIN_GROUND = 0.35  # share of the picture that has to be ground
MIN_CONTRAST = (
    50  # grey levels between an object and the ground, in the channel where they differ most
)
MIN_AREA, MAX_AREA = 0.012, 0.45  # of an object, in squares of the shorter side
MAX_COLOUR_DISTANCE = 85.0  # to the nearest colour of the palette, in RGB
MIN_PURE = 0.8  # share of an object that has its colour
LIMITS = {
    "circle": (0.96, 0.008),
    "square": (0.87, -0.035),
    "triangle": (0.8, 0.025),
    "diamond": (0.8, 0.02),
    "star": (0.72, -0.06),
    "heart": (0.85, 0.02),
    "cross": (0.75, 0.02),
    "ring": (0.78, 0.02),
    "arrow": (0.8, 0.05),
}
"""Kind → the minimum overlap of its outline, and its minimum lead over the overlap of any shape
that is not a kind.

People still see a square if its corners are somewhat round; a small blurred star is nearly a
pentagon; a circle leads a nonagon only slightly, and must. `bench/judge.py` set these values on
true shapes and on OTHERS, leaving out each in turn.
"""
MAX_THINGS = 5  # a picture of more is noise, or a pattern
MIN_EXPLAINED = 0.95  # share of the picture that is ground, object, or an edge between them


@dataclass(frozen=True)
class Found:
    """One object.

    Args:
        kind: None if no outline fits.
        colour: a name of COLOURS; None if none is near, or it has several.
        centre: (x, y) as shares of width and height, of the box around it.
        size: its longer side as a share of the picture's shorter side.
        fits: the best fit, whether or not it is good enough.
    """

    kind: str | None
    colour: str | None
    centre: tuple[float, float]
    size: float
    fits: Fits


def detect(pixels: np.ndarray, kinds: Sequence[str] = KINDS) -> list[Found]:
    """The objects in a picture, the largest first.

    Args:
        pixels: (H, W, 3) uint8.
        kinds: those that may be found.

    Returns:
        The objects found; none in pictures that are not scenes, which have no pale background, or
        much that is neither background nor object.
    """
    ground = _ground(pixels)
    if ground is None:
        return []
    difference = ground - pixels
    contrast = np.clip(difference, 0, None).max(2)
    explained = np.abs(difference).max(2) < MIN_CONTRAST
    labels, _ = ndimage.label(contrast > MIN_CONTRAST)
    objects = []
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        region = labels == number
        if MIN_AREA < region[window].sum() / min(region.shape) ** 2 < MAX_AREA:
            full = float(np.percentile(contrast[region], 75))
            # Half the contrast is where the edge runs, however soft it is.
            inside = region & (contrast > full / 2)
            thing = _examine(pixels, ground, inside, kinds)
            if thing.kind or thing.colour:
                objects.append(thing)
                # With its soft edge, which is neither object nor ground.
                explained |= ndimage.binary_dilation(inside, iterations=3)
    is_scene = len(objects) <= MAX_THINGS and explained.mean() > MIN_EXPLAINED
    return sorted(objects, key=lambda thing: -thing.size) if is_scene else []


def _ground(pixels: np.ndarray) -> np.ndarray | None:
    """The background's typical colour; None if there is no pale background."""
    pale = pixels.min(2) > PALE
    return np.median(pixels[pale], axis=0) if pale.mean() > MIN_GROUND else None


def _examine(
    pixels: np.ndarray, ground: np.ndarray, inside: np.ndarray, kinds: Sequence[str]
) -> Found:
    """What lies `inside`."""
    height, width = inside.shape
    difference = ground - pixels
    contrast = np.clip(difference, 0, None).max(2)
    # The quarter with most contrast: towards the edge, the colours of object and ground are mixed.
    core = inside & (contrast >= np.percentile(contrast[inside], 75))
    rgb = np.median(pixels[core], axis=0)
    # How far each pixel lies on the way from the ground's colour to the object's.
    way = ground - rgb
    share = np.clip(difference @ way / (way @ way), 0, 1)
    # Cut other objects away, since a fit explains only one.
    cover = np.where(ndimage.binary_dilation(inside, iterations=2), share, 0)
    fits = best_fits(cover, kinds=kinds)
    overlap, lead = LIMITS[fits.kind]
    # Without the edge, whose mixed colours say nothing about purity.
    whole = ndimage.binary_erosion(inside)
    pure = np.linalg.norm(pixels[whole] - rgb, axis=1) < MAX_COLOUR_DISTANCE
    rows, columns = np.nonzero(inside)
    return Found(
        kind=fits.kind if fits.overlap >= overlap and fits.lead >= lead else None,
        colour=_nearest_colour(rgb) if pure.size and pure.mean() >= MIN_PURE else None,
        centre=(
            float(columns.min() + columns.max() + 1) / 2 / width,
            float(rows.min() + rows.max() + 1) / 2 / height,
        ),
        size=float(max(np.ptp(rows), np.ptp(columns)) + 1) / min(height, width),
        fits=fits,
    )


def _nearest_colour(rgb: np.ndarray) -> str | None:
    distances = {
        name: float(np.linalg.norm(rgb - np.asarray(value))) for name, value in COLOURS.items()
    }
    name = min(distances, key=lambda colour: distances[colour])
    return name if distances[name] < MAX_COLOUR_DISTANCE else None
