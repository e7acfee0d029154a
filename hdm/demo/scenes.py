"""Scenes: pictures of one to three objects with known truth, any number of them, each a function of
(seed, index).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hdm.demo.shapes import KINDS, mask, mask_of
from hdm.demo.things import Background, Layout, Scene, Thing
from hdm.demo.wording import captions, object_caption, pair_caption

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "KINDS",
    "PLACES",
    "SUBJECT_COLOURS",
    "Background",
    "Scene",
    "Thing",
    "captions",
    "draw",
    "draw_shape",
    "make_scene",
    "object_caption",
    "pair_caption",
    "subject_scene",
]


COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 40),
    "orange": (244, 134, 22),
    "yellow": (238, 206, 30),
    "green": (42, 152, 62),
    "blue": (36, 92, 214),
    "purple": (122, 48, 168),
    "pink": (240, 112, 178),
    "black": (30, 30, 34),
}
PLACES = ("left", "right", "top", "bottom")
GROUNDS = ("plain", "gradient", "stripes", "checks")
GROUND_SHARES = (0.45, 0.25, 0.15, 0.15)
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    [
        ("circle", "purple"), ("square", "red"), ("triangle", "green"), ("diamond", "pink"),
        ("star", "blue"), ("heart", "orange"), ("cross", "yellow"), ("ring", "black"),
    ]
)  # fmt: skip
"""(kind, colour) pairs that no scene has: each kind and each colour once. What the trained model is
asked for.
"""
SUBJECT_COLOURS = ("red", "yellow", "blue", "black")
"""The colours in which pictures of a subject show it; a model that learnt it is asked for the
others.
"""
_PAIRS = tuple(pair for pair in itertools.product(KINDS, COLOURS) if pair not in HELD_OUT)


def make_scene(seed: int, index: int, size_px: int = 64, num_objects: int | None = None) -> Scene:
    """The scene of that number.

    Args:
        seed, index: every pair names one scene.
        size_px: shorter side in pixels; the same scene at another size differs in nothing else.
        num_objects: 1 to 3; None: 70 % have one object, 22 % two, 8 % three.

    Returns:
        A scene without any HELD_OUT pair; its aspect ratio lies in [1/2, 2] and is 1 for half of
        them.
    """
    # The order of draws defines the scenes: after a change, raise SCENES_VERSION.
    rng = np.random.default_rng((seed, index))
    # Drawn even if `num_objects` replaces it, so that later draws do not shift.
    count = int(rng.choice(3, p=(0.70, 0.22, 0.08))) + 1
    count = num_objects or count
    width, height = _frame(rng, size_px)
    background = _background(rng)
    layout, spots = _LAYOUTS[count](rng, width / height)
    pairs = _distinct_pairs(rng, count)
    things = []
    for pair, spot in zip(pairs, spots, strict=True):
        things.append(_thing(rng, pair, spot, width, height))
    return Scene(width, height, background, layout, tuple(things))


def subject_scene(seed: int, index: int, subject: str, size_px: int = 64) -> Scene:
    """The scene of that number with one object, which is a subject instead of what it was.

    Args:
        seed, index, size_px: as for `make_scene`.
        subject: one of SUBJECTS.
    """
    scene = make_scene(seed, index, size_px, 1)
    (thing,) = scene.things
    # In turn, so that a dozen pictures show all of them.
    colour = SUBJECT_COLOURS[index % len(SUBJECT_COLOURS)]
    shade = np.subtract(thing.rgb, COLOURS[thing.colour])
    r, g, b = np.clip(np.add(COLOURS[colour], shade), 0, 255).tolist()
    taught = replace(thing, kind=subject, colour=colour, rgb=(r, g, b))
    return replace(scene, things=(taught,))


def draw(scene: Scene) -> np.ndarray:
    """The picture: (height, width, 3) uint8."""
    picture = _draw_background(scene.background, scene.width, scene.height)
    shorter = min(scene.width, scene.height)
    for thing in scene.things:
        centre = (thing.centre[0] * scene.width, thing.centre[1] * scene.height)
        covered, left, top = mask(
            thing.kind, scene.width, scene.height, centre, thing.extent * shorter, thing.angle
        )
        _paint(picture, covered, left, top, thing.rgb)
    return (picture + 0.5).astype(np.uint8)


def draw_shape(scene: Scene, corners: np.ndarray, hole: np.ndarray | None = None) -> np.ndarray:
    """The picture of a scene whose first object has another shape, which need be none of KINDS; no
    other object is drawn.

    Args:
        scene: its first object tells place, size and colour.
        corners, hole: as for `shapes.mask_of`.
    """
    picture = _draw_background(scene.background, scene.width, scene.height)
    thing = scene.things[0]
    centre = (thing.centre[0] * scene.width, thing.centre[1] * scene.height)
    extent = thing.extent * min(scene.width, scene.height)
    covered, left, top = mask_of(
        corners, scene.width, scene.height, centre, extent, thing.angle, hole
    )
    _paint(picture, covered, left, top, thing.rgb)
    return (picture + 0.5).astype(np.uint8)


def _paint(
    picture: np.ndarray, covered: np.ndarray, left: int, top: int, rgb: tuple[int, int, int]
) -> None:
    window = picture[top : top + covered.shape[0], left : left + covered.shape[1]]
    window += covered[:, :, None] * (np.asarray(rgb, np.float32) - window)


@dataclass(frozen=True)
class _Spot:
    """Where an object goes: its centre and the sizes that fit there, as shares."""

    place: str
    centre: tuple[float, float]
    extents: tuple[float, float] = (0.36, 0.50)  # small, large


def _frame(rng: np.random.Generator, size_px: int) -> tuple[int, int]:
    # All three are drawn in any case, so that later draws do not shift.
    square = rng.random() < 0.5
    aspect = np.exp(rng.uniform(np.log(1.15), np.log(2.0)))
    portrait = rng.random() < 0.5
    if square:
        return size_px, size_px
    longer = min(round(size_px * float(aspect)), 2 * size_px)
    return (size_px, longer) if portrait else (longer, size_px)


def _one(rng: np.random.Generator, aspect: float) -> tuple[Layout, list[_Spot]]:
    place = PLACES[rng.integers(len(PLACES))]
    near = rng.uniform(0.285, 0.31)
    across = rng.uniform(0.44, 0.56)
    if place in ("right", "bottom"):
        near = 1 - near
    return "one", [_Spot(place, (near, across) if place in ("left", "right") else (across, near))]


def _two(rng: np.random.Generator, aspect: float) -> tuple[Layout, list[_Spot]]:
    beside = rng.random() < (0.5 if 0.8 < aspect < 1.25 else 0.8 if aspect >= 1.25 else 0.2)
    along = (rng.uniform(0.24, 0.28), rng.uniform(0.72, 0.76))
    across = rng.uniform(0.44, 0.56, 2)
    places = ("left", "right") if beside else ("top", "bottom")
    spots = []
    for place, a, c in zip(places, along, across, strict=True):
        spots.append(_Spot(place, (a, c) if beside else (c, a), (0.30, 0.40)))
    return ("left_of" if beside else "above"), spots


def _three(rng: np.random.Generator, aspect: float) -> tuple[Layout, list[_Spot]]:
    jitter = rng.uniform(-0.02, 0.02, (3, 2))
    extents = (0.29, 0.36)
    if 1 / 1.5 < aspect < 1.5:
        layout: Layout = "two_above"
        centres = [(0.26, 0.28), (0.74, 0.28), (0.5, 0.74)]
        places = ("left", "right", "bottom")
    else:
        layout = "row" if aspect > 1 else "column"
        extents = (0.29, 0.40)
        centres = [(a, 0.5) if aspect > 1 else (0.5, a) for a in (0.18, 0.5, 0.82)]
        places = ("left", "middle", "right") if aspect > 1 else ("top", "middle", "bottom")
    spots = []
    for place, (x, y), (dx, dy) in zip(places, centres, jitter, strict=True):
        spots.append(_Spot(place, (x + float(dx), y + float(dy)), extents))
    return layout, spots


_LAYOUTS = {1: _one, 2: _two, 3: _three}


def _distinct_pairs(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Objects of one picture differ in kind and in colour, so that each can be named."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pair = _PAIRS[rng.integers(len(_PAIRS))]
        if all(pair[0] != kind and pair[1] != colour for kind, colour in pairs):
            pairs.append(pair)
    return pairs


def _thing(
    rng: np.random.Generator, pair: tuple[str, str], spot: _Spot, width: int, height: int
) -> Thing:
    kind, colour = pair
    large = rng.random() < 0.5
    extent = spot.extents[int(large)] * rng.uniform(0.95, 1.05)
    rgb = np.clip(np.asarray(COLOURS[colour]) + rng.integers(-8, 9, 3), 0, 255)
    centre = (float(spot.centre[0]), float(spot.centre[1]))
    angle = float(rng.uniform(-0.09, 0.09))
    r, g, b = map(int, rgb)
    return Thing(
        kind,
        colour,
        "large" if large else "small",
        spot.place,
        centre,
        float(extent),
        angle,
        (r, g, b),
    )


def _background(rng: np.random.Generator) -> Background:
    kind = GROUNDS[rng.choice(len(GROUNDS), p=GROUND_SHARES)]
    first = rng.integers(226, 251) + rng.integers(-10, 5, 3)
    fall = rng.integers(18, 30) if kind == "gradient" else rng.integers(13, 22)
    second = first - fall + rng.integers(-5, 6, 3)
    angle = (
        float(rng.uniform(0, 2 * np.pi))
        if kind == "gradient"
        else float(rng.integers(4)) * np.pi / 4
    )
    period = float(rng.uniform(0.16, 0.34))
    return Background(kind, _rgb(first), _rgb(second), period, angle)


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = map(int, colour)
    return red, green, blue


@lru_cache(maxsize=256)
def _grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, x and y, as shares of the shorter side, from the picture's middle."""
    shorter = min(width, height)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / shorter
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / shorter
    return x[None, :], y[:, None]


def _draw_background(ground: Background, width: int, height: int) -> np.ndarray:
    first = np.asarray(ground.first, np.float32)
    second = np.asarray(ground.second, np.float32)
    if ground.kind == "plain":
        return np.broadcast_to(first, (height, width, 3)).copy()
    x, y = _grid(width, height)
    cos = np.float32(np.cos(ground.angle))
    sin = np.float32(np.sin(ground.angle))
    along = x * cos + y * sin
    across = y * cos - x * sin
    if ground.kind == "gradient":
        share = (along - along.min()) / np.ptp(along)
    else:
        edge = np.float32(min(width, height) * ground.period / np.pi)  # one pixel wide
        waves = np.sin(along * np.float32(2 * np.pi / ground.period))
        if ground.kind == "checks":
            waves = waves * np.sin(across * np.float32(2 * np.pi / ground.period))
        share = np.clip(0.5 + waves * edge, 0, 1)
    mixed: np.ndarray = first + share[:, :, None] * (second - first)
    return mixed
