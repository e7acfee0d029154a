"""The judge of scenes: prompts with known answers, scores from pixels, and an audit of the planted
faults.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hdm.acquisition.settings import ScenesSettings
from hdm.demo.detector import Found, detect
from hdm.demo.faults import plan
from hdm.demo.scenes import (
    COLOURS,
    HELD_OUT,
    KINDS,
    PLACES,
    SUBJECT_COLOURS,
    pair_caption,
)
from hdm.demo.wording import noun, object_captions, unseen_captions
from hdm.scoring.judges import PromptSet
from hdm.statistics import Share

SETS = ("one_object", "free_wordings", "two_objects", "subject")
"""One object in the captions' words; one in words that no caption has; two objects; an object of
the kind that the pictures teach, in colours in which they do not show it.
"""
QUESTIONS = ("colour", "place", "kind")
SHARES = {"one_object": 1, "free_wordings": 3, "two_objects": 4}
"""Set → `evaluate.num_images` per image of this set."""
SHARES_OF_SUBJECT = {"subject": 1, "one_object": 1}
"""The same where the pictures teach a kind: whether it is learnt, and the others are kept."""
TITLES = {
    "one_object": "One object, unseen combinations",
    "free_wordings": "One object, in words that no caption has",
    "two_objects": "Two objects: both have to be right",
    "subject": "The kind that the pictures teach, in other colours",
}
HEADLINE = {
    "one_object": QUESTIONS,
    "free_wordings": ("kind",),
    "two_objects": ("kind",),
    "subject": QUESTIONS,
}
"""The most informative questions of each set."""
VERSION = 1
AGREEMENT = Path(__file__).with_name("agreement.json")  # bench/judge.py writes it
MIN_OFFSET = 0.08  # share of width or height that an object lies off the middle, to have a place
MIN_APART = 0.15  # that two objects lie apart, to have an order


@dataclass(frozen=True)
class Asked:
    """One object of a prompt."""

    kind: str
    colour: str


@dataclass(frozen=True)
class ScenePrompt:
    """A prompt and the expected content: one object at one of PLACES, or two, the first `left_of`
    or `above` the second.
    """

    text: str
    things: tuple[Asked, ...]
    place: str


class SceneJudge:
    """Provides prompts for scenes and judges the pictures from pixels only, without knowing how
    they were made.

    Args:
        settings: of the data set whose faults are audited.
    """

    def __init__(self, settings: ScenesSettings) -> None:
        self.settings = settings

    @property
    def questions(self) -> Sequence[str]:
        return QUESTIONS

    @property
    def kinds(self) -> tuple[str, ...]:
        """What an object may be: the subject too, where the pictures teach one."""
        subject = self.settings.subject
        return KINDS if subject is None else (*KINDS, subject)

    def identify(self) -> dict[str, Any]:
        """The versions of this file and of the detector, on which prompts and answers depend."""
        subject = self.settings.subject
        return {"version": VERSION, **({"subject": subject} if subject else {})}

    def prompt_sets(self, num_images: int, seed: int) -> list[PromptSet]:
        """The sets, for an evaluation of so many images of one object."""
        prompt_sets = []
        shares = SHARES if self.settings.subject is None else SHARES_OF_SUBJECT
        for name, share in shares.items():
            asked = self.prompts(name, max(1, num_images // share), seed)
            texts = tuple(prompt.text for prompt in asked)
            prompt_sets.append(
                PromptSet(
                    name,
                    texts,
                    title=TITLES[name],
                    asked=tuple(asked),
                    headline=HEADLINE[name],
                )
            )
        return prompt_sets

    def prompts(self, name: str, num_images: int, seed: int) -> list[ScenePrompt]:
        """Prompts for combinations of kind and colour that are in no scene, all different as long
        as there are enough of them.

        Args:
            name: one of SETS. One object: every held-out pair at every place in every wording, each
                of them in turn. Two objects: each held-out pair in turn beside another. The subject
                as one object.
            num_images: number of prompts; they repeat if it exceeds the number of different
                prompts.
            seed: sets which wordings come first, and what accompanies the held-out pair.
        """
        if name == "two_objects":
            return _ask_two(np.random.default_rng((seed, 2)), num_images)
        pairs = sorted(HELD_OUT)
        if name == "subject":
            assert self.settings.subject is not None
            other = [colour for colour in COLOURS if colour not in SUBJECT_COLOURS]
            pairs = [(self.settings.subject, colour) for colour in other]
        prompts = []
        for number in range(num_images):
            turn, first = divmod(number, len(pairs) * len(PLACES))
            place, pair = divmod(first, len(pairs))
            kind, colour = pairs[pair]
            wordings = _wordings(name, colour, kind, PLACES[place])
            text = wordings[(seed + turn + pair + 2 * place) % len(wordings)]
            prompts.append(ScenePrompt(text, (Asked(kind, colour),), PLACES[place]))
        return prompts

    def agreement(self) -> dict[str, Share]:
        """By question: its agreement with labels on objects in generated pictures
        (`tests/demo/labelled`).
        """
        counts = json.loads(AGREEMENT.read_bytes())
        return {name: Share(counts[name]["right"], counts[name]["total"]) for name in QUESTIONS}

    def score(self, prompt: ScenePrompt, pixels: np.ndarray) -> dict[str, bool]:
        """Whether colour, place and kind are as prompted, for two objects both; all False if the
        number of objects differs.

        Args:
            prompt: one of `prompts`.
            pixels: (H, W, 3) uint8.
        """
        detected = detect(pixels, self.kinds)
        # An extra object is wrong too, even if the requested ones are there.
        if len(detected) != len(prompt.things):
            return dict.fromkeys(QUESTIONS, False)
        # The assignment that favours the picture most, since nothing in it says which object is
        # which.
        answers = [_compare(prompt, order) for order in permutations(detected)]
        return max(answers, key=lambda answer: sum(answer.values()))

    def audit(self, samples: pa.Table, scores: pa.Table) -> dict[str, Any]:
        """How many planted faults were caught and how many good pictures kept.

        Args:
            samples: `source`, `key`, `status` of every item that was asked for.
            scores: `key`, `kept`, `reason` of every item that was judged.

        Returns:
            `good`: planted and kept; `caught`: planted and caught over all faults; `faults`: kind →
            planted, caught, and how often for which reason. A fault is caught if the item was not
            downloaded or not kept; a copy only if, besides, its original was kept.
        """
        kept = dict(zip(scores["key"].to_pylist(), scores["kept"].to_pylist(), strict=True))
        reasons = dict(zip(scores["key"].to_pylist(), scores["reason"].to_pylist(), strict=True))
        keys = dict(zip(samples["source"].to_pylist(), samples["key"].to_pylist(), strict=True))
        status = dict(
            zip(samples["source"].to_pylist(), samples["status"].to_pylist(), strict=True)
        )
        items = plan(self.settings)
        for item in items:
            # Of files with equal bytes it does not matter which one is kept.
            if item.fault == "exact_duplicate" and item.original is not None:
                copy = keys.get(item.url)
                original = keys.get(items[item.original].url)
                if kept.get(copy) and kept.get(original) is False:
                    kept[copy] = False
                    kept[original] = True
                    reasons[copy] = reasons[original]
                    reasons[original] = None
        # Then every planned item against what became of it.
        good: Counter[str] = Counter()
        faults: dict[str, Counter[str]] = {}
        why: dict[str, Counter[str]] = {}
        for item in items:
            if item.url not in keys:
                continue  # the download was asked for fewer
            is_kept = bool(kept.get(keys[item.url], False))
            if item.fault is None:
                good.update(planted=1, kept=int(is_kept))
                continue
            original_kept = item.original is None or kept.get(
                keys.get(items[item.original].url), False
            )
            faults.setdefault(item.fault, Counter()).update(
                planted=1, caught=int(not is_kept and bool(original_kept))
            )
            reason = "kept" if is_kept else reasons.get(keys[item.url]) or status[item.url]
            why.setdefault(item.fault, Counter()).update([reason])
        every = sum(faults.values(), Counter[str]())
        return {
            "good": {"planted": good["planted"], "kept": good["kept"]},
            "caught": {"planted": every["planted"], "caught": every["caught"]},
            "faults": {
                fault: {
                    "planted": counts["planted"],
                    "caught": counts["caught"],
                    "reasons": dict(sorted(why[fault].items())),
                }
                for fault, counts in sorted(faults.items())
            },
        }


def _wordings(name: str, colour: str, kind: str, place: str) -> list[str]:
    if name == "free_wordings":
        return unseen_captions(colour, kind, place)
    return object_captions(colour, kind, place)


def _ask_two(rng: np.random.Generator, count: int) -> list[ScenePrompt]:
    prompts: dict[str, ScenePrompt] = {}
    # Chance may repeat a prompt; prompts of a set all differ.
    while len(prompts) < count:
        prompt = _two(rng, len(prompts))
        prompts.setdefault(prompt.text, prompt)
    return list(prompts.values())


def _two(rng: np.random.Generator, number: int) -> ScenePrompt:
    pairs = sorted(HELD_OUT)
    kind, colour = pairs[number % len(pairs)]
    other_kind = [name for name in KINDS if name != kind][rng.integers(len(KINDS) - 1)]
    other_colour = [name for name in COLOURS if name != colour][rng.integers(len(COLOURS) - 1)]
    things = [Asked(kind, colour), Asked(other_kind, other_colour)]
    if rng.random() < 0.5:
        things.reverse()
    layout = "left_of" if number // len(pairs) % 2 == 0 else "above"
    nouns = [noun(thing.colour, thing.kind) for thing in things]
    return ScenePrompt(pair_caption(nouns[0], nouns[1], layout, rng), tuple(things), layout)


def _compare(prompt: ScenePrompt, found: Sequence[Found]) -> dict[str, bool]:
    pairs = list(zip(prompt.things, found, strict=True))
    return {
        "colour": all(thing.colour == seen.colour for thing, seen in pairs),
        "place": _is_placed(prompt.place, found),
        "kind": all(thing.kind == seen.kind for thing, seen in pairs),
    }


def _is_placed(place: str, found: Sequence[Found]) -> bool:
    return place_of(found[0].centre) == place if len(found) == 1 else _in_order(place, found)


def place_of(centre: tuple[float, float]) -> str:
    """The place of a point: the side towards which it is farthest from the centre; "middle" if it
    is close to the centre.
    """
    right = centre[0] - 0.5
    down = centre[1] - 0.5
    if max(abs(right), abs(down)) < MIN_OFFSET:
        return "middle"
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "bottom" if down > 0 else "top"


def _in_order(place: str, found: Sequence[Found]) -> bool:
    axis = 0 if place == "left_of" else 1
    apart = np.subtract(found[1].centre, found[0].centre)
    return bool(apart[axis] > MIN_APART and abs(apart[axis]) > abs(apart[1 - axis]))
