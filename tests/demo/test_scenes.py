import math
import re

import numpy as np
import pytest

from hdm.demo.scenes import COLOURS, HELD_OUT, KINDS, PLACES, captions, draw, make_scene
from hdm.demo.shapes import mask
from hdm.demo.wording import free_caption, unseen_captions

NUM_SCENES = 1500


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(7, index) for index in range(NUM_SCENES)]


def test_a_scene_is_a_function_of_seed_and_index(scenes):
    again = make_scene(7, 123)
    assert again == scenes[123]
    assert np.array_equal(draw(again), draw(scenes[123]))
    assert make_scene(8, 123) != again
    assert make_scene(7, 123, size_px=96).truth == again.truth


def test_held_out_pairs_use_every_kind_and_colour_once_and_are_never_drawn(scenes):
    assert sorted(kind for kind, _ in HELD_OUT) == sorted(KINDS)
    assert sorted(colour for _, colour in HELD_OUT) == sorted(COLOURS)
    drawn = {(thing.kind, thing.colour) for scene in scenes for thing in scene.things}
    assert not drawn & HELD_OUT
    assert len(drawn) == 56


def test_frames_and_numbers_of_objects(scenes):
    aspects = np.array([scene.width / scene.height for scene in scenes])
    assert (
        min(min(scene.width, scene.height) for scene in scenes)
        == max(min(scene.width, scene.height) for scene in scenes)
        == 64
    )
    assert aspects.min() >= 0.5
    assert aspects.max() <= 2
    assert 0.45 < (aspects == 1).mean() < 0.55
    ones = np.mean([len(scene.things) == 1 for scene in scenes])
    assert 0.60 < ones < 0.70


def test_every_object_lies_inside_its_picture_and_has_its_colour_at_its_centre(scenes):
    for scene in scenes[:300]:
        picture = draw(scene)
        assert picture.shape == (scene.height, scene.width, 3)
        for thing in scene.things:
            x, y = int(thing.centre[0] * scene.width), int(thing.centre[1] * scene.height)
            if thing.kind != "ring":
                assert np.abs(picture[y, x].astype(int) - thing.rgb).max() <= 1


def test_objects_stand_out_from_their_background(scenes):
    for scene in scenes[:300]:
        for ground in (scene.background.first, scene.background.second):
            for thing in scene.things:
                assert np.abs(np.subtract(ground, thing.rgb)).max() > 80


def test_place_is_the_axis_on_which_the_object_is_off_the_middle(scenes):
    for scene in scenes:
        if scene.layout == "one":
            thing = scene.things[0]
            dx, dy = thing.centre[0] - 0.5, thing.centre[1] - 0.5
            assert max(abs(dx), abs(dy)) > 3 * min(abs(dx), abs(dy))
            assert thing.place == (
                ("left" if dx < 0 else "right")
                if abs(dx) > abs(dy)
                else ("top" if dy < 0 else "bottom")
            )


def test_masks_have_the_areas_that_geometry_gives():
    extent = 40.0
    areas = {
        "circle": math.pi / 4 * extent**2,
        "ring": math.pi / 4 * extent**2 * (1 - 0.55**2),
        "square": (0.88 * extent) ** 2,
        "diamond": 2 * 0.42 * 0.58 * extent**2,
        "triangle": 0.54 * 0.93 * extent**2,
        "cross": (4 * 0.33 * 0.34 + 0.34**2) * extent**2,
    }
    for kind, area in areas.items():
        covered, _, _ = mask(kind, 64, 64, (31.3, 32.6), extent, 0.05)
        assert covered.sum() == pytest.approx(area, rel=0.03), kind


def test_edges_are_anti_aliased():
    covered, left, top = mask("circle", 64, 64, (32.25, 32.0), 30.0)
    assert np.count_nonzero((covered > 0.1) & (covered < 0.9)) > 50
    y, x = np.mgrid[: covered.shape[0], : covered.shape[1]] + 0.5
    assert (covered * (x + left)).sum() / covered.sum() == pytest.approx(32.25, abs=0.05)
    assert (covered * (y + top)).sum() / covered.sum() == pytest.approx(32.0, abs=0.05)


def test_captions_are_true_short_and_of_few_words(scenes):
    rng = np.random.default_rng(0)
    vocabulary = set()
    for scene in scenes:
        for caption in captions(scene, rng, 2):
            words = caption.replace(",", "").replace(":", "").split()
            vocabulary.update(words)
            for thing in scene.things:
                noun = words.index(thing.kind)
                assert words[noun - 1] == thing.colour
            if scene.layout == "one":
                assert len(words) <= 16
                assert [word for word in words if word in PLACES] == [scene.things[0].place]
    assert len(vocabulary) <= 60


def test_free_captions_are_true_and_never_use_the_wordings_that_are_kept_for_evaluation(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes:
        caption = free_caption(scene, rng)
        words = re.findall("[a-z]+", caption)
        for thing in scene.things:
            assert thing.kind in words
            assert thing.colour in words
        if scene.layout == "one":
            thing = scene.things[0]
            assert {word for word in words if word in PLACES} == {thing.place}
            assert caption not in unseen_captions(thing.colour, thing.kind, thing.place)


def test_pair_captions_name_the_order(scenes):
    rng = np.random.default_rng(1)
    for scene in scenes:
        if scene.layout not in ("left_of", "above"):
            continue
        first, second = scene.things
        caption = captions(scene, rng)[0]
        in_order = caption.index(f"{first.colour} {first.kind}") < caption.index(
            f"{second.colour} {second.kind}"
        )
        mirrored = "to the right of" in caption or " below " in caption
        assert in_order != mirrored
        axis = 0 if scene.layout == "left_of" else 1
        assert first.centre[axis] < second.centre[axis] - 0.3
