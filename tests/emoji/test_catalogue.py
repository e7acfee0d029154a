"""What is trained on and what is asked for: nothing that is asked for leaks into training, and each
question can be answered.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from hdm.emoji.catalogue import questions, training_pictures

NOTO = Path(__file__).resolve().parents[3] / "shared" / "data" / "emoji" / "noto128"
TONE = re.compile(r"(?:: |, )((?:medium-)?(?:light|dark)|medium) skin tone")
TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]


def split_name(name: str) -> tuple[str, str | None]:
    """A name without its skin tone, and the tone; read from the text alone."""
    found = TONE.search(name)
    rest = TONE.sub("", name)
    # "man: dark skin tone, red hair" is "man: red hair": the comma that is left belongs to the
    # colon that went.
    return (re.sub(r"^([^:,]+), ", r"\1: ", rest) if found else rest), found and found[1]


def without_gender(base: str) -> str:
    return re.sub(r"^(man|woman|person|men|women|people) ", "", base.removesuffix(": facing right"))


@pytest.mark.skipif(not NOTO.is_dir(), reason="needs ../shared/data")
def test_files_and_names_are_those_of_the_real_pictures() -> None:
    rows = [json.loads(line) for line in (NOTO / "metadata.dev.jsonl").read_text().splitlines()]
    known = {row["file_name"].removeprefix("images/"): row for row in rows}
    for picture in training_pictures():
        row = known[picture.emoji.file]
        name, *described = picture.captions
        assert name == row["name"]
        for caption in described:
            keywords = caption.removeprefix(f"{name} (").removesuffix(")").split(", ")
            assert set(keywords) <= set(row["keywords"])
            assert keywords


def test_no_training_picture_is_of_an_unseen_name_or_its_family() -> None:
    asked = {question.name for question in questions(0)["names"]}
    assert len(asked) == 32
    families = {without_gender(name) for name in asked}
    assert len(families) == 32
    for picture in training_pictures():
        base, _ = split_name(picture.captions[0])
        assert without_gender(base) not in families
        keywords = re.findall(r"[^,()]+", " ".join(picture.captions[1:]))
        assert not {word.strip().casefold() for word in keywords} & {
            name.casefold() for name in asked
        }


def test_parts_of_combinations_are_trained_on_and_combinations_are_not() -> None:
    asked = [question.name for question in questions(0)["combinations"]]
    assert len({without_gender(split_name(name)[0]) for name in asked}) == 32
    trained = {split_name(picture.captions[0]) for picture in training_pictures()}
    for name in asked:
        base, tone = split_name(name)
        assert tone in TONES
        assert (base, tone) not in trained
        assert (base, None) in trained
        assert sum((base, other) in trained for other in TONES) == 3
        assert sum(other == tone for _, other in trained) > 50


@pytest.mark.parametrize("seed", [0, 7])
def test_every_question_has_four_names_of_which_one_is_right(seed: int) -> None:
    found = questions(seed)
    for question in (*found["combinations"], *found["names"]):
        assert len(set(question.choices)) == 4
        assert question.name in question.choices
    for question in found["combinations"]:
        parts = {split_name(choice) for choice in question.choices}
        bases, tones = ({part[number] for part in parts} for number in (0, 1))
        assert len(bases) == len(tones) == 2  # each part decides
        first, second = (TONES.index(str(tone)) for tone in tones)
        assert abs(first - second) >= 2
    names = {question.name for question in found["names"]}
    offered = Counter(choice for question in found["names"] for choice in question.choices)
    assert offered == dict.fromkeys(names, 4)


def test_the_seed_shuffles_the_choices_and_nothing_else() -> None:
    one, other = questions(0), questions(1)
    for name in one:
        assert [set(q.choices) for q in one[name]] == [set(q.choices) for q in other[name]]
        assert one[name] != other[name]
        places = Counter(q.choices.index(q.name) for q in one[name])
        assert max(places.values()) < 20  # the right one is not always first
