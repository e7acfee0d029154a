"""The eight kinds of objects, and a ninth to be learnt later, as outlines, and their anti-aliased
masks.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
SUBJECTS = ("arrow",)
"""Kinds that no scene has unless it is asked for: what a trained model is taught."""
SUPERSAMPLING = 4
RING_HOLE = 0.55


@cache
def outline(kind: str) -> np.ndarray:
    """The corners of a kind: (N, 2) as (x right, y down), its longer extent about 1, centred on the
    origin.
    """
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    if kind in ("circle", "ring"):
        return 0.5 * np.stack([np.cos(turn), np.sin(turn)], 1)
    if kind == "square":
        return 0.44 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    if kind == "diamond":
        return np.array([(0, -0.58), (0.42, 0), (0, 0.58), (-0.42, 0)], float)
    if kind == "triangle":
        return np.array([(0, -0.48), (0.54, 0.45), (-0.54, 0.45)], float)
    if kind == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, 0.58, 0.235)
        star: np.ndarray = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        return star
    # The usual heart curve, moved to its middle and scaled to an extent of about 1.
    if kind == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return np.stack([x, y - 2.5], 1) / 31
    if kind == "cross":
        arm, bar = 0.5, 0.17
        quarter = [(-bar, -arm), (bar, -arm), (bar, -bar)]
        return np.array(
            [
                (x * c - y * s, x * s + y * c)
                for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
                for x, y in quarter
            ],
            float,
        )
    if kind == "arrow":
        half = [(0.0, -0.54), (0.48, -0.04), (0.2, -0.04), (0.2, 0.48)]
        return np.array([*half, *((-x, y) for x, y in reversed(half[1:]))])
    raise ValueError(f"no kind is called {kind!r}")


def mask(
    kind: str,
    width: int,
    height: int,
    centre: tuple[float, float],
    extent: float,
    angle: float = 0.0,
) -> tuple[np.ndarray, int, int]:
    """The share of every pixel that an object covers.

    Args:
        kind: one of KINDS or SUBJECTS.
        width, height, centre, extent, angle: as for `mask_of`.
    """
    hole = outline(kind) * RING_HOLE if kind == "ring" else None
    return mask_of(outline(kind), width, height, centre, extent, angle, hole)


def mask_of(
    corners: np.ndarray,
    width: int,
    height: int,
    centre: tuple[float, float],
    extent: float,
    angle: float = 0.0,
    hole: np.ndarray | None = None,
) -> tuple[np.ndarray, int, int]:
    """The share of every pixel that any shape covers.

    Args:
        corners: (N, 2) as (x right, y down), about the origin.
        width, height: of the picture, in pixels; what lies outside is cut off.
        centre: (x, y) in pixels.
        extent: of the corners' unit, in pixels.
        angle: turned clockwise, in radians.
        hole: corners of what is cut out.

    Returns:
        A float32 array in [0, 1] for a window around the object, and the window's left and top
        pixel.
    """
    cos = np.cos(angle)
    sin = np.sin(angle)
    turned = np.array([[cos, sin], [-sin, cos]]) * extent
    placed = corners @ turned + centre
    left, top = np.maximum(np.floor(placed.min(0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(placed.max(0)).astype(int) + 1, (width, height))
    # Pillow draws polygons without anti-aliasing: draw larger and average.
    canvas = Image.new("L", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)

    def fill(points: np.ndarray, value: int) -> None:
        pen.polygon(((points - (left, top)) * SUPERSAMPLING).ravel().tolist(), fill=value)

    fill(placed, 255)
    if hole is not None:
        fill(hole @ turned + centre, 0)
    covered = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    return covered, int(left), int(top)
