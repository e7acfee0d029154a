"""The emoji, their captions, and the rule that splits them.

`names.tsv` holds code points as in Noto Emoji's file names, names and keywords (Unicode CLDR 46,
`LICENSE-Unicode`), groups (Unicode's emoji-test.txt), and whether there are five more pictures with
a skin tone. It has the emoji of Noto Emoji 2.047 that are in one of Unicode's groups, without
letters, digits and most flags. Left out are pictures in which two people have a skin tone each
(295, many of which differ in a hand alone) and those of 12 names whose lightest and darkest tone
differ in less than 2 % of the pixels.

Which name is held out is decided by the SHA-256 of the name, so adding one moves no other:

- Unseen names: 32 names of different families. No picture of their families is in training.
  The names of a family differ in `man`, `woman` or `person` in front, in a skin tone, or in the
  direction faced. Symbols, flags and combined names ("man: red hair") are not chosen.
- Unseen tones: of the five skin tones of a name, three are in training. The prompts ask for 32
  combinations of a name with one of its other two tones, each of another family. The model then
  knows the name in other tones, and the tone from other names.

Genders are names of their own, and the pictures without a skin tone are all trained on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

NUM_ASKED = 32
SEEN_TONES = 3
NUM_KEYWORDS = 5
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE_CODEPOINTS = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
FAR = 2
"""Tones at least this many steps apart can be distinguished."""
NOT_ASKED = ("Symbols", "Flags")
_PEOPLE = ("man ", "woman ", "person ", "men ", "women ", "people ")
COMBINATIONS = "combinations"
NAMES = "names"
"""The two sets of questions."""


@dataclass(frozen=True)
class Emoji:
    """One picture.

    Args:
        codepoints: lower-case hex, joined by `_`, as in its file's name.
        base: its name without a skin tone.
        tone: place in TONES; None: without.
        group: of emoji-test.txt.
        keywords: of CLDR.
    """

    codepoints: str
    base: str
    tone: int | None
    group: str
    keywords: tuple[str, ...]

    @property
    def file(self) -> str:
        """Name of its file in Noto Emoji's folder `png/128`."""
        return f"emoji_u{self.codepoints}.png"

    @property
    def name(self) -> str:
        """CLDR's name: "man: dark skin tone, red hair" is "man: red hair" with a tone."""
        if self.tone is None:
            return self.base
        head, _, rest = self.base.partition(": ")
        return f"{head}: {TONES[self.tone]} skin tone" + (f", {rest}" if rest else "")

    @property
    def family(self) -> str:
        """What the names that differ in gender, skin tone and direction alone have in common."""
        plain = self.base.removesuffix(": facing right")
        for word in _PEOPLE:
            plain = plain.removeprefix(word)
        return plain

    def toned(self, tone: int) -> Emoji:
        """The same with this skin tone."""
        parts = self.codepoints.split("_")
        # Unicode puts a skin tone directly after the person that it modifies.
        first, *rest = [part for part in parts if part not in TONE_CODEPOINTS]
        points = "_".join([first, TONE_CODEPOINTS[tone], *rest])
        return Emoji(points, self.base, tone, self.group, self.keywords)


@dataclass(frozen=True)
class Picture:
    """A training picture: its file in Noto Emoji's folder, its emoji and its captions."""

    emoji: Emoji
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A picture is asked for by `name`; of `choices`, shuffled and without repeats, one is that
    name.
    """

    name: str
    choices: tuple[str, ...]


@cache
def bases() -> tuple[Emoji, ...]:
    """The emoji without skin tones, in the order of emoji-test.txt."""
    return tuple(emoji for emoji, _ in _rows())


@cache
def training_pictures() -> tuple[Picture, ...]:
    """The pictures to train on, with their captions: the name, and the name with some of its
    keywords.

    A keyword that is an unseen name is left out.
    """
    unseen = {emoji.base.casefold() for emoji in unseen_names()}
    held_out = _unseen_families()
    pictures = []
    for emoji, toned in _rows():
        if emoji.family in held_out:
            continue
        variants = [emoji]
        if toned:
            for tone in sorted(_tones(emoji)[:SEEN_TONES]):
                variants.append(emoji.toned(tone))
        for variant in variants:
            pictures.append(Picture(variant, _captions(variant, unseen)))
    return tuple(pictures)


@cache
def unseen_names() -> tuple[Emoji, ...]:
    """The 32 emoji that are asked for and whose families no training picture is of."""
    candidates = []
    for emoji in bases():
        # As "man: red hair".
        is_combined = ":" in emoji.base
        if emoji.group not in NOT_ASKED and not is_combined:
            candidates.append(emoji)
    return _of_different_families(candidates)


@cache
def unseen_combinations() -> tuple[Emoji, ...]:
    """The 32 emoji that are asked for with a skin tone in which their name was not trained on."""
    held_out = _unseen_families()
    candidates = []
    for emoji, toned in _rows():
        if not toned or emoji.family in held_out:
            continue
        for tone in _tones(emoji)[SEEN_TONES:]:
            candidates.append(emoji.toned(tone))
    return _of_different_families(candidates)


def questions(seed: int) -> dict[str, tuple[Question, ...]]:
    """The two sets of questions.

    A combination's choices are two names in two skin tones each, FAR apart; an unseen name's are
    three others of the 32, each of which is among the choices of three.

    Args:
        seed: of the order of the choices.
    """
    rng = random.Random(seed)
    combinations = unseen_combinations()
    names = unseen_names()
    about_combinations = []
    for emoji, other in zip(combinations, _turned(combinations, 1), strict=True):
        about_combinations.append(_shuffled(_crossed(emoji, other), rng))
    about_names = []
    # Each name beside the next three of the 32.
    for four in zip(*(_turned(names, by) for by in range(4)), strict=True):
        about_names.append(_shuffled([emoji.name for emoji in four], rng))
    return {COMBINATIONS: tuple(about_combinations), NAMES: tuple(about_names)}


def _crossed(emoji: Emoji, other: Emoji) -> list[str]:
    """The names of two emoji, each in the first's tone and in one FAR from it."""
    own = emoji.tone
    assert own is not None
    far = [tone for tone in range(len(TONES)) if abs(tone - own) >= FAR]
    # Chosen by hash among the tones that can be told apart.
    second = min(far, key=lambda tone: _place(f"{emoji.name} or {TONES[tone]}"))
    return [
        emoji.toned(own).name,
        emoji.toned(second).name,
        other.toned(own).name,
        other.toned(second).name,
    ]


def _shuffled(choices: list[str], rng: random.Random) -> Question:
    name = choices[0]
    return Question(name, tuple(rng.sample(choices, len(choices))))


def _turned(items: tuple[Emoji, ...], by: int) -> tuple[Emoji, ...]:
    return items[by:] + items[:by]


def _captions(emoji: Emoji, unseen: set[str]) -> tuple[str, ...]:
    known = []
    for keyword in emoji.keywords:
        folded = keyword.casefold()
        # A keyword that repeats the name adds nothing.
        if folded not in unseen and folded not in emoji.name.casefold():
            known.append(keyword)
    if not known:
        return (emoji.name,)
    known.sort(key=lambda keyword: _place(f"{emoji.base} {keyword}"))
    return (emoji.name, f"{emoji.name} ({', '.join(known[:NUM_KEYWORDS])})")


def _unseen_families() -> frozenset[str]:
    return frozenset(emoji.family for emoji in unseen_names())


def _of_different_families(emoji: Iterable[Emoji]) -> tuple[Emoji, ...]:
    """The first 32 by their names' hashes, of each family the first."""
    first: dict[str, Emoji] = {}
    # By hash: nobody picks what looks good, and a name that is added later moves no other.
    for one in sorted(emoji, key=lambda one: _place(one.name)):
        first.setdefault(one.family, one)
    return tuple(first.values())[:NUM_ASKED]


def _tones(emoji: Emoji) -> list[int]:
    """The five skin tones of a name, in the order in which they are trained on."""
    return sorted(range(len(TONES)), key=lambda tone: _place(emoji.toned(tone).name))


def _place(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _rows() -> tuple[tuple[Emoji, bool], ...]:
    text = files("hdm.emoji").joinpath("names.tsv").read_text(encoding="utf-8")
    # The first line holds the titles of the columns.
    return tuple(_parsed(text.splitlines()[1:]))


def _parsed(lines: Iterable[str]) -> Iterator[tuple[Emoji, bool]]:
    for line in lines:
        codepoints, name, group, toned, keywords = line.split("\t")
        words = tuple(keywords.split("|")) if keywords else ()
        yield Emoji(codepoints, name, None, group, words), bool(toned)
