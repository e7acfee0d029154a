"""Captions of scenes, in several wordings of a small vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hdm.demo.things import Scene, Thing

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

UNSEEN_WORDINGS = (
    "{colour} {kind}, {place}",
    "draw me {a} {colour} {kind} {where}",
    "a {kind} in {colour} at the {place} side",
    "could you paint a {kind} that is {colour}, {place} side",
    "{place}: {colour} {kind}",
    "i would like to see {a} {colour} {kind} placed near the {place}",
    "put one {colour} {kind} near the {place} edge",
    "an image whose {place} part holds {a} {colour} {kind}",
)
"""Prompts for one object in wordings that no caption has: other sentences and other words."""

_OPENINGS = (
    "show", "show us", "make", "please make", "give us", "we need", "i want", "add", "print", "try",
    "imagine", "let there be", "how about", "what about", "look,", "now", "just", "this is",
    "here we see", "here is", "what we want is", "sketch of", "photo of", "drawing of", "view of",
    "icon of", "sign with", "scene with", "nice picture of", "my favourite:", "one more:",
)  # fmt: skip
_FREE_NOUNS = (
    "{a} {colour} {kind}",
    "{colour} {kind}",
    "the {colour} {kind}",
    "{colour}-coloured {kind}",
    "a {kind} which is {colour}",
    "a {kind}, all {colour}",
    "{kind} of {colour} colour",
    "{a} {colour} thing: a {kind}",
)
_FREE_PLACES = (
    "to the {place}",
    "towards the {place}",
    "close to the {place}",
    "far to the {place}",
    "by the {place} margin",
    "in the {place} half",
    "{place} half",
)
_FREE_SENTENCES = (
    "{opening} {noun} {where}",
    "{opening} {noun}, {where}",
    "{noun}, {where}",
    "{noun} | {where}",
    "{noun} goes {where}",
    "{where}: {noun}",
    "{where}, {opening} {noun}",
    "{opening} something {where}: {noun}",
)
_STRANGE_SHARE = 0.3

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


def free_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption in another person's style: other sentences, and meaningless words.

    A model trained on many of these learns to ignore unknown words. None of them is in
    UNSEEN_WORDINGS.
    """
    opening = _opening(rng)
    if scene.layout != "one":
        return f"{opening} {_caption(scene, rng)}"
    thing = scene.things[0]
    words = {"a": _article(thing.colour), "colour": thing.colour, "kind": thing.kind}
    described = _pick(_FREE_NOUNS, rng).format(**words)
    where = _pick((_WHERE[thing.place], *_FREE_PLACES), rng).format(place=thing.place)
    return _pick(_FREE_SENTENCES, rng).format(opening=opening, noun=described, where=where)


def _opening(rng: np.random.Generator) -> str:
    if rng.random() >= _STRANGE_SHARE:
        return _pick(_OPENINGS, rng)
    return " ".join(_strange_word(rng) for _ in range(rng.integers(1, 4)))


def _strange_word(rng: np.random.Generator) -> str:
    """A meaningless word of one or two syllables."""
    syllables = rng.integers(1, 3)
    return "".join(
        _pick("bcdfghjklmnprstvwz", rng) + _pick("aeiou", rng) + _pick(("", *"lmnrsdt"), rng)
        for _ in range(syllables)
    )


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def object_captions(
    colour: str,
    kind: str,
    place: str,
    size: str | None = None,
    ground: str | None = None,
) -> list[str]:
    """The captions of one object at a place, one of each wording; `size` is the word for it. None:
    it is not mentioned.
    """
    thing = noun(colour, kind, size)
    back = _background(ground) if ground else None
    on = f" on {back}" if back else ""
    return [
        f"{thing} {_WHERE[place]}{on}",
        f"{thing} {_SIDE[place]} {back or 'the picture'}",
        f"{_WHERE[place]} there is {thing}{on}",
        f"the picture shows {thing} {_WHERE[place]}",
        f"there is {thing} {_SIDE[place]} the picture",
        f"{back or 'a picture'} with {thing} {_WHERE[place]}",
    ]


def object_caption(
    colour: str,
    kind: str,
    place: str,
    rng: np.random.Generator,
    size: str | None = None,
    ground: str | None = None,
) -> str:
    """One of `object_captions`, and one of the words for the size "small" or "large"."""
    wordings = object_captions(colour, kind, place, _size_word(size, rng), ground)
    return wordings[rng.integers(len(wordings))]


def unseen_captions(colour: str, kind: str, place: str) -> list[str]:
    """The prompts of one object in each of UNSEEN_WORDINGS."""
    words = {"colour": colour, "kind": kind, "place": place, "where": _WHERE[place]}
    return [wording.format(a=_article(colour), **words) for wording in UNSEEN_WORDINGS]


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
    # Other draws make other captions: after a change, raise SCENES_VERSION.
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
    size = thing.size if rng.random() < 0.25 else None
    return noun(thing.colour, thing.kind, _size_word(size, rng))


def noun(colour: str, kind: str, size: str | None = None) -> str:
    """An object with its article, and a word for its size in front."""
    words = f"{size} {colour} {kind}" if size else f"{colour} {kind}"
    return f"{_article(words)} {words}"


def _size_word(size: str | None, rng: np.random.Generator) -> str | None:
    return _SIZE_WORDS[size][rng.integers(2)] if size else None


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _background(ground: str) -> str:
    return f"a {_GROUND[ground]} background"
