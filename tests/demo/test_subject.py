"""A kind that the demo's scenes do not have: pictures that teach it, and who recognises it."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from hdm.acquisition.settings import ScenesSettings
from hdm.demo.bootstrap import round_trip
from hdm.demo.detector import detect
from hdm.demo.faults import file_bytes, plan, scene_of
from hdm.demo.judge import QUESTIONS, SceneJudge
from hdm.demo.others import OTHERS, shape
from hdm.demo.scenes import COLOURS, PLACES, SUBJECT_COLOURS, draw, draw_shape, make_scene
from hdm.demo.shapes import KINDS
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.models.components import resolve
from hdm.models.settings import Components
from tests.demo.foreign_shapes import UNKNOWN, square_scenes

TAUGHT = ScenesSettings(count=12, faults=0, uncaptioned=0, subject="arrow")


@pytest.fixture(scope="module")
def judge() -> SceneJudge:
    return SceneJudge(TAUGHT)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return load_autoencoder(resolve(Components(folder="demo")).need("autoencoder"))


def test_every_picture_shows_it_alone_and_every_caption_says_so(judge: SceneJudge) -> None:
    items = plan(TAUGHT)
    assert len(items) == 12
    for item in items:
        picture = np.asarray(Image.open(io.BytesIO(file_bytes(item, TAUGHT, items))).convert("RGB"))
        (found,) = detect(picture, judge.kinds)
        (thing,) = scene_of(item, TAUGHT).things
        assert (found.kind, found.colour) == ("arrow", thing.colour)
        assert thing.colour in SUBJECT_COLOURS
        for caption in item.captions:
            words = set(re.findall("[a-z]+", caption))
            assert {"arrow", thing.colour} <= words
            assert not words & {*KINDS, *(set(COLOURS) - {thing.colour})}
    assert {scene_of(item, TAUGHT).things[0].colour for item in items} == set(SUBJECT_COLOURS)
    assert {scene_of(item, TAUGHT).things[0].place for item in items} == set(PLACES)


def test_the_judge_asks_for_it_in_other_colours_and_for_the_old_kinds(judge: SceneJudge) -> None:
    sets = {one.name: one for one in judge.prompt_sets(48, seed=0)}
    assert set(sets) == {"subject", "one_object"}
    asked = [prompt.things[0] for prompt in judge.prompts("subject", 96, seed=0)]
    assert {one.kind for one in asked} == {"arrow"}
    assert {one.colour for one in asked} == set(COLOURS) - set(SUBJECT_COLOURS)
    assert len(set(sets["subject"].texts)) == 48
    plain = SceneJudge(ScenesSettings()).prompt_sets(48, seed=0)
    assert sets["one_object"].texts == plain[0].texts


def test_it_is_recognised_as_drawn_and_through_the_autoencoder(
    judge: SceneJudge, autoencoder: Autoencoder
) -> None:
    corners, hole = shape("arrow")
    right = []
    for prompt, scene in zip(
        judge.prompts("subject", 24, seed=0), square_scenes(6_000_011, 24), strict=True
    ):
        drawn = draw_shape(scene, corners, hole)
        for picture in (drawn, round_trip(autoencoder, drawn)):
            right.append(judge.score(prompt, picture)["kind"])
            # The demo's own judge knows no such kind.
            assert all(found.kind != "arrow" for found in detect(picture))
    assert np.mean(right) >= 0.95


def test_nothing_else_is_taken_for_it(judge: SceneJudge, autoencoder: Autoencoder) -> None:
    others = {**OTHERS, **UNKNOWN, **{kind: shape(kind) for kind in KINDS}}
    # One of the foreign shapes is an arrow of another hand.
    del others["arrow"]
    taken = []
    for number, (corners, hole) in enumerate(others.values()):
        (scene,) = square_scenes(7_000_000 + number, 1)
        picture = round_trip(autoencoder, draw_shape(scene, corners, hole))
        taken.append(any(found.kind == "arrow" for found in detect(picture, judge.kinds)))
    assert np.mean(taken) <= 0.02


def test_the_old_kinds_are_read_as_before(judge: SceneJudge) -> None:
    for index in range(60):
        picture = draw(make_scene(21, index))
        plain, taught = detect(picture), detect(picture, judge.kinds)
        assert [(one.kind, one.colour) for one in plain] == [
            (one.kind, one.colour) for one in taught
        ]
    assert judge.questions == QUESTIONS


def test_the_demo_s_data_set_is_as_before() -> None:
    for item in plan(ScenesSettings(count=40)):
        scene = scene_of(item, ScenesSettings(count=40))
        assert all(thing.kind in KINDS for thing in scene.things)
    assert ScenesSettings().result_fields() == {
        "count": 4000, "seed": 0, "faults": 0.12, "size_px": 64, "uncaptioned": 0.1
    }  # fmt: skip
