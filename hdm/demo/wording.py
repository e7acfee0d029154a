"""Captions of scenes, in several wordings of a small vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hdm.demo.scenes import Scene, Thing

_WHERE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
_SIDE = {
    "left": "at the left side of",
    "right": "at the right side of",
    "top": "at the top of",
    "bottom": "at the bottom of",
}
_GROUND = {"plain": "plain", "gradient": "shaded", "stripes": "striped", "checks": "checked"}
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}

Draw = np.random.Generator


def captions(scene: Scene, rng: np.random.Generator, count: int = 1) -> list[str]:
    """Captions that are true of the scene.

    Args:
        scene: what is in the picture.
        rng: draws the wording, and whether size and background are mentioned.
        count: how many; they may repeat.

    Returns:
        Lower-case captions without a full stop; one object takes at most 16 words.
    """
    return [_caption(scene, rng) for _ in range(count)]


def object_caption(
    colour: str,
    kind: str,
    place: str,
    rng: np.random.Generator,
    size: str | None = None,
    ground: str | None = None,
) -> str:
    """A caption of one object at a place; None: size or background is not mentioned."""
    thing = _noun(colour, kind, rng, size)
    back = _background(ground) if ground else None
    on = f" on {back}" if back else ""
    wordings = [
        f"{thing} {_WHERE[place]}{on}",
        f"{thing} {_SIDE[place]} {back or 'the picture'}",
        f"{_WHERE[place]} there is {thing}{on}",
        f"the picture shows {thing} {_WHERE[place]}",
        f"there is {thing} {_SIDE[place]} the picture",
        f"{back or 'a picture'} with {thing} {_WHERE[place]}",
    ]
    return wordings[rng.integers(len(wordings))]


def pair_caption(
    first: str, second: str, layout: str, rng: np.random.Generator, ground: str | None = None
) -> str:
    """A caption of two objects, given as noun phrases: the first is left of or above the second."""
    one_way, other_way = {
        "left_of": ("to the left of", "to the right of"),
        "above": ("above", "below"),
    }[layout]
    here, there = {"left_of": ("left", "right"), "above": ("top", "bottom")}[layout]
    end = f" on {_background(ground)}" if ground else ""
    wordings = [
        f"{first} {one_way} {second}{end}",
        f"{second} {other_way} {first}{end}",
        f"there is {first} {one_way} {second}",
        f"{first} {_WHERE[here]} and {second} {_WHERE[there]}{end}",
    ]
    return wordings[rng.integers(len(wordings))]


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    ground = scene.background.kind if rng.random() < 0.35 else None
    if scene.layout == "one":
        thing = scene.things[0]
        return object_caption(
            thing.colour,
            thing.kind,
            thing.place,
            rng,
            thing.size if rng.random() < 0.4 else None,
            ground,
        )
    nouns = [_thing(thing, rng) for thing in scene.things]
    if scene.layout in ("left_of", "above"):
        return pair_caption(nouns[0], nouns[1], scene.layout, rng, ground)
    first, second, third = nouns
    end = f" on {_background(ground)}" if ground else ""
    if scene.layout == "two_above":
        wordings = [
            f"{first} and {second} above {third}{end}",
            f"{third} below {first} and {second}{end}",
        ]
    else:
        order = "left to right" if scene.layout == "row" else "top to bottom"
        wordings = [
            f"{first}, {second} and {third} from {order}{end}",
            f"from {order}: {first}, {second} and {third}",
        ]
    return wordings[rng.integers(len(wordings))]


def _thing(thing: Thing, rng: np.random.Generator) -> str:
    return _noun(thing.colour, thing.kind, rng, thing.size if rng.random() < 0.25 else None)


def _noun(colour: str, kind: str, rng: np.random.Generator, size: str | None) -> str:
    words = f"{colour} {kind}"
    if size:
        words = f"{_SIZE_WORDS[size][rng.integers(2)]} {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _background(ground: str) -> str:
    return f"a {_GROUND[ground]} background"
