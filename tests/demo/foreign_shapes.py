"""Shapes that are none of the kinds, and none of those that the judge knows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hdm.demo.others import (
    HALVED,
    HOLE,
    Shape,
    arc,
    blob,
    half,
    polygon,
    regular,
    spikes,
    superellipse,
    turned,
)
from hdm.demo.scenes import Scene, make_scene
from hdm.demo.shapes import outline

UNKNOWN: dict[str, Shape] = {
    "hexagon": (regular(6), None),
    "octagon": (regular(8, np.pi / 8), None),
    "squircle": (superellipse(3.2), None),
    "square without corners": (
        polygon(
            (-0.44, -0.2), (-0.2, -0.44), (0.2, -0.44), (0.44, -0.2),
            (0.44, 0.2), (0.2, 0.44), (-0.2, 0.44), (-0.44, 0.2),
        ), None,
    ),
    "ellipse": (superellipse(2, 1.1, 0.78), None),
    "semicircle": (arc(0, 0.25, 0.5, 180, 360), None),
    "crescent": (np.concatenate([arc(0, 0, 0.5, 50, 310), arc(0.22, 0, 0.4, 298, 62)]), None),
    "shield": (
        np.concatenate([
            [(-0.42, -0.48), (0.42, -0.48)],
            arc(-0.42, -0.2, 0.84, 0, 55),
            arc(0.42, -0.2, 0.84, 125, 180),
        ]), None,
    ),
    "spade": (turned(outline("heart"), 180), None),
    "parallelogram": (polygon((-0.3, -0.35), (0.6, -0.35), (0.3, 0.35), (-0.6, 0.35)), None),
    "hourglass": (
        polygon((-0.4, -0.5), (0.4, -0.5), (0.1, 0), (0.4, 0.5), (-0.4, 0.5), (-0.1, 0)), None,
    ),
    "arrow": (
        polygon(
            (0, -0.55), (0.45, -0.05), (0.18, -0.05), (0.18, 0.5),
            (-0.18, 0.5), (-0.18, -0.05), (-0.45, -0.05),
        ), None,
    ),
    "L": (
        polygon((-0.4, -0.5), (-0.1, -0.5), (-0.1, 0.2), (0.4, 0.2), (0.4, 0.5), (-0.4, 0.5)), None,
    ),
    "X": (turned(outline("cross"), 45), None),
    "Latin cross": (
        polygon(
            (-0.12, -0.55), (0.12, -0.55), (0.12, -0.25), (0.4, -0.25), (0.4, 0), (0.12, 0),
            (0.12, 0.55), (-0.12, 0.55), (-0.12, 0), (-0.4, 0), (-0.4, -0.25), (-0.12, -0.25),
        ), None,
    ),
    "eight-pointed star": (spikes(8, 0.36), None),
    "three-pointed star": (spikes(3, 0.16), None),
    "hexagon with a hole": (regular(6), HOLE),
    "horseshoe": (np.concatenate([arc(0, 0, 0.5, 130, 410), arc(0, 0, 0.28, 410, 130)]), None),
    **{f"blob {number}": (blob(number), None) for number in range(100, 110)},
    **{f"half a {kind}": (half(kind, 2 + number % 2), None) for number, kind in enumerate(HALVED)},
}  # fmt: skip


def square_scenes(seed: int, count: int, size_px: int = 64) -> Iterator[Scene]:
    """Square scenes of one object."""
    index = found = 0
    while found < count:
        scene = make_scene(seed, index, size_px, num_objects=1)
        index += 1
        if scene.width == scene.height:
            found += 1
            yield scene
