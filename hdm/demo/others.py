"""Shapes that are none of the kinds: an object that looks more like one of them is of no kind."""

from __future__ import annotations

import numpy as np

from hdm.demo.shapes import KINDS, RING_HOLE, outline

Shape = tuple[np.ndarray, np.ndarray | None]
"""Corners and, where there is one, a hole's."""


def polygon(*corners: tuple[float, float]) -> np.ndarray:
    return np.array(corners, float)


def regular(count: int, turn: float = 0.0) -> np.ndarray:
    # A star whose inner corners lie on the polygon's edges.
    return spikes(count, 0.5 * np.cos(np.pi / count), 0.5, turn)


def spikes(count: int, inner: float, outer: float = 0.56, turn: float = 0.0) -> np.ndarray:
    angles = np.arange(2 * count) * np.pi / count - np.pi / 2 + turn
    radii = np.where(np.arange(2 * count) % 2 == 0, outer, inner)
    corners: np.ndarray = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    return corners


def arc(
    x: float, y: float, radius: float, start: float, end: float, height: float | None = None
) -> np.ndarray:
    """From one angle to another, in degrees clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 32))
    return np.stack([x + radius * np.cos(angles), y + (height or radius) * np.sin(angles)], 1)


def superellipse(power: float, width: float = 1.0, height: float = 1.0) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    cos = np.cos(turn)
    sin = np.sin(turn)
    return 0.46 * np.stack(
        [
            width * np.sign(cos) * np.abs(cos) ** (2 / power),
            height * np.sign(sin) * np.abs(sin) ** (2 / power),
        ],
        1,
    )


def rounded_square(share: float) -> np.ndarray:
    inner = 0.44 * (1 - share)
    corners = ((inner, -inner, -90), (inner, inner, 0), (-inner, inner, 90), (-inner, -inner, 180))
    return np.concatenate([arc(x, y, 0.44 * share, a, a + 90) for x, y, a in corners])


def turned(corners: np.ndarray, degrees: float) -> np.ndarray:
    cos = np.cos(np.radians(degrees))
    sin = np.sin(np.radians(degrees))
    rotated: np.ndarray = corners @ np.array([[cos, sin], [-sin, cos]])
    return rotated


def blob(seed: int) -> np.ndarray:
    rng = np.random.default_rng((97, seed))
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    waves = (rng.uniform(0.08, 0.16) * np.cos(k * turn + rng.uniform(0, 7)) for k in range(2, 6))
    radii = 0.42 * (1 + sum(waves))
    outline: np.ndarray = np.asarray(radii)[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    return outline


def half(kind: str, side: int) -> np.ndarray:
    """What lies above (0), below (1), left (2) or right (3) of the middle, by cutting the outline
    there.
    """
    axis, sign = (1, 1 if side == 0 else -1) if side < 2 else (0, 1 if side == 2 else -1)
    corners = outline(kind)
    kept = []
    for first, second in zip(corners, np.roll(corners, -1, 0), strict=True):
        here = sign * first[axis]
        there = sign * second[axis]
        if here <= 0:
            kept.append(first)
        if here * there < 0:
            kept.append(first + (second - first) * here / (here - there))
    return np.array(kept)


# Kinds whose halves are neither triangles nor discs.
HALVED = tuple(kind for kind in KINDS if kind not in ("triangle", "diamond", "ring"))
HOLE = 0.55 * regular(48)
OTHERS: dict[str, Shape] = {
    "pentagon": (regular(5), None),
    "pentagon upside down": (regular(5, np.pi), None),
    "heptagon": (regular(7), None),
    "heptagon upside down": (regular(7, np.pi), None),
    "nonagon": (regular(9), None),
    "nonagon upside down": (regular(9, np.pi), None),
    "rounded square": (rounded_square(0.5), None),
    "oval": (superellipse(2, 1.0, 0.85), None),
    "tall oval": (superellipse(2, 0.85, 1.0), None),
    "egg": (np.concatenate([arc(0, 0.1, 0.38, 0, 180), arc(0, 0.1, 0.38, 180, 360, 0.6)]), None),
    "arch": (np.concatenate([arc(0, -0.1, 0.4, 180, 360), [(0.4, 0.45), (-0.4, 0.45)]]), None),
    "bar": (polygon((-0.55, -0.16), (0.55, -0.16), (0.55, 0.16), (-0.55, 0.16)), None),
    "tall bar": (polygon((-0.16, -0.55), (0.16, -0.55), (0.16, 0.55), (-0.16, 0.55)), None),
    "bow tie": (
        polygon((-0.5, -0.4), (0, -0.1), (0.5, -0.4), (0.5, 0.4), (0, 0.1), (-0.5, 0.4)), None,
    ),
    "chevron": (
        polygon((-0.5, 0.1), (0, -0.4), (0.5, 0.1), (0.5, 0.45), (0, -0.05), (-0.5, 0.45)), None,
    ),
    "disc with a small hole": (regular(48), 0.4 * HOLE),
    "trapezoid": (polygon((-0.3, -0.35), (0.3, -0.35), (0.55, 0.35), (-0.55, 0.35)), None),
    "house": (
        polygon((0, -0.5), (0.45, -0.08), (0.45, 0.45), (-0.45, 0.45), (-0.45, -0.08)), None,
    ),
    "drop": (np.concatenate([arc(0, 0.12, 0.36, -30, 210), [(0, -0.58)]]), None),
    "kite": (polygon((0, -0.4), (0.42, -0.1), (0, 0.6), (-0.42, -0.1)), None),
    "fan": (np.concatenate([arc(0, 0.0, 0.5, 200, 340), [(0, 0.45)]]), None),
    "T": (
        polygon(
            (-0.45, -0.45), (0.45, -0.45), (0.45, -0.15), (0.15, -0.15), (0.15, 0.5), (-0.15, 0.5),
            (-0.15, -0.15), (-0.45, -0.15),
        ), None,
    ),
    "four-pointed star": (spikes(4, 0.2), None),
    "six-pointed star": (spikes(6, 0.3), None),
    "star upside down": (spikes(5, 0.235, 0.58, np.pi), None),
    "square with a hole": (rounded_square(0.05), HOLE),
    "disc with a hole on one side": (regular(48), 0.8 * HOLE + (0.12, 0)),
    "open ring": (np.concatenate([arc(0, 0, 0.5, 25, 335), arc(0, 0, 0.28, 335, 25)]), None),
    **{f"blob {number}": (blob(number), None) for number in range(6)},
    **{f"half a {kind}": (half(kind, number % 2), None) for number, kind in enumerate(HALVED)},
}  # fmt: skip


def shape(name: str) -> Shape:
    """One of KINDS or of OTHERS."""
    if name in OTHERS:
        return OTHERS[name]
    return outline(name), outline(name) * RING_HOLE if name == "ring" else None
