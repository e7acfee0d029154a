"""Given captions, templates, and a CoCa's, item by item."""

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from hdm.captioning.makers import CoCa, Given, Item, Template
from hdm.captioning.settings import ITEM_FIELDS, CaptionMaker
from hdm.demo.scenes import draw, make_scene
from hdm.errors import ConfigError
from hdm.keys import key_text
from hdm.models.components import resolve
from hdm.models.contrastive import load_contrastive
from hdm.models.settings import Components


def item(number: int = 0, **fields: Any) -> Item:
    return Item(key_text(number), {**dict.fromkeys(ITEM_FIELDS), **fields})


def template(text: str | None, **settings: Any) -> Template:
    return Template(CaptionMaker(kind="template", template=text, **settings))


def test_given_captions_are_kept_and_missing_ones_are_not_made_up():
    pair = Item(
        key_text(0), {**dict.fromkeys(ITEM_FIELDS), "given": "a cat"}, given=("a cat", "cats")
    )
    assert Given(CaptionMaker()).captions([pair, item()]) == [["a cat", "cats"], []]


def test_wordings_are_shared_out_by_key_and_stay_with_it():
    maker = template("an emoji of {given}|{given}, as a picture | a small {given}")
    items = [item(number, given="cat") for number in range(600)]
    made = [caption for (caption,) in maker.captions(items)]
    assert made[::-1] == [caption for (caption,) in maker.captions(items[::-1])]
    counts = Counter(made)
    assert set(counts) == {"an emoji of cat", "cat, as a picture", "a small cat"}
    assert min(counts.values()) > 150


def test_every_given_caption_gets_its_wording():
    pair = Item(
        key_text(0), {**dict.fromkeys(ITEM_FIELDS), "given": "cat"}, given=("cat", "animal")
    )
    assert template("a {given}").captions([pair]) == [["a cat", "a animal"]]
    assert template("a picture").captions([pair]) == [["a picture"]]


def test_several_wordings_of_one_item_differ():
    (made,) = template("{given}|the {given}|a {given}", count=2).captions([item(given="cat")])
    assert len(set(made)) == 2
    (made,) = template("{given}|the {given}", count=5).captions([item(given="cat")])
    assert sorted(made) == ["cat", "the cat"]


def test_wordings_whose_fields_are_missing_are_not_used():
    maker = template("{given} by {licence}|a picture of {given}|something {width} wide")
    assert maker.captions([item(width=8)]) == [["something 8 wide"]]
    assert template("a {given}").captions([item()]) == [[]]


def test_braces_in_captions_are_only_text():
    assert template("a {given} {{x}}").captions([item(given="{source} {0.__class__} %s")]) == [
        ["a {source} {0.__class__} %s {x}"]
    ]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " | ",
        "a {name}",
        "a {}",
        "a {0}",
        "a {given.__class__}",
        "a {given[0]}",
        "a {given",
        "a } b",
        "a {width:{height}}",
        "a {given!r}",
    ],
)
def test_templates_that_cannot_be_filled_in_are_refused(text):
    with pytest.raises(ValidationError, match="template"):
        template(text)


@pytest.fixture(scope="module")
def contrastive(coca_folder):
    return load_contrastive(resolve(Components(contrastive=str(coca_folder))))


@pytest.fixture(scope="module")
def seen() -> list[Item]:
    return [
        Item(key_text(index), dict.fromkeys(ITEM_FIELDS), draw(make_scene(5, index)))
        for index in range(5)
    ]


def test_a_coca_says_its_likeliest_caption_first_and_draws_the_others_by_key(contrastive, seen):
    one, several = (
        CoCa(CaptionMaker(kind="coca", max_tokens=8), contrastive),
        CoCa(CaptionMaker(kind="coca", max_tokens=8, count=5), contrastive),
    )
    greedy = one.captions(seen)
    assert greedy == [
        [caption] for caption in contrastive.caption([item.pixels for item in seen], 8)
    ]
    made = several.captions(seen)
    assert [captions[:1] for captions in made] == greedy
    assert several.captions(seen[2:]) == made[2:]
    assert all(len(captions) == 5 for captions in made)
    assert len({caption for captions in made for caption in captions}) > 5


def test_a_model_that_cannot_caption_is_refused(contrastive, monkeypatch):
    monkeypatch.setattr(contrastive, "can_caption", False)
    with pytest.raises(ConfigError, match="not one"):
        CoCa(CaptionMaker(kind="coca"), contrastive)
