import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from hdm.acquisition.settings import ScenesSettings
from hdm.demo.faults import plan
from hdm.demo.judge import Asked, SceneJudge, ScenePrompt, place_of
from hdm.demo.scenes import COLOURS, HELD_OUT, PLACES, draw, make_scene
from hdm.demo.wording import object_captions

SETTINGS = ScenesSettings(count=300, seed=5, faults=0.2)


@pytest.fixture(scope="module")
def judge():
    return SceneJudge(SETTINGS)


def repainted(scene, things):
    """The scene with kinds and colours of its things replaced."""
    changed = [
        replace(old, kind=kind, colour=colour, rgb=COLOURS[colour])
        for old, (kind, colour) in zip(scene.things, things, strict=True)
    ]
    return draw(replace(scene, things=tuple(changed)))


@pytest.mark.parametrize(("name", "wordings"), [("one_object", 6), ("free_wordings", 8)])
def test_prompts_ask_for_every_held_out_pair_at_every_place_in_every_wording(judge, name, wordings):
    prompts = judge.prompts(name, 32 * wordings, seed=0)
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    for turn in range(wordings):
        asked = {(p.things[0].kind, p.things[0].colour, p.place) for p in prompts[32 * turn :][:32]}
        assert asked == {(kind, colour, place) for kind, colour in HELD_OUT for place in PLACES}
    for prompt in prompts:
        words = re.findall("[a-z]+", prompt.text)
        assert {prompt.things[0].colour, prompt.things[0].kind} <= set(words)
        assert [word for word in words if word in PLACES] == [prompt.place]
    again, other = (judge.prompts(name, 32 * wordings, seed) for seed in (0, 1))
    assert prompts == again != other
    more = judge.prompts(name, 32 * wordings + 1, seed=0)
    assert more[-1] == prompts[0]


def test_free_wordings_are_in_no_caption(judge):
    known = {
        caption
        for kind, colour in HELD_OUT
        for place in PLACES
        for caption in object_captions(colour, kind, place)
    }
    assert not known & {prompt.text for prompt in judge.prompts("free_wordings", 256, seed=0)}


def test_prompts_of_two_objects_differ_in_kind_and_colour_and_hold_an_unseen_pair(judge):
    prompts = judge.prompts("two_objects", 40, seed=0)
    assert {prompt.place for prompt in prompts} == {"left_of", "above"}
    assert len({prompt.text for prompt in prompts}) == 40
    for prompt in prompts:
        first, second = prompt.things
        assert first.kind != second.kind
        assert first.colour != second.colour
        assert {(first.kind, first.colour), (second.kind, second.colour)} & HELD_OUT
        assert all(f"{thing.colour} {thing.kind}" in prompt.text for thing in prompt.things)


def test_drawn_answers_are_right_and_others_are_not(judge):
    scenes = [make_scene(21, index, num_objects=1) for index in range(60)]
    for prompt, scene in zip(judge.prompts("one_object", 60, seed=0), scenes, strict=True):
        asked = prompt.things[0]
        there = scene.things[0].place == prompt.place
        assert judge.score(prompt, repainted(scene, [(asked.kind, asked.colour)])) == {
            "colour": True,
            "place": there,
            "kind": True,
        }
        other_kind = "circle" if asked.kind != "circle" else "star"
        other_colour = "red" if asked.colour != "red" else "blue"
        assert judge.score(prompt, repainted(scene, [(other_kind, other_colour)])) == {
            "colour": False,
            "place": there,
            "kind": False,
        }


def test_two_objects_are_right_only_together_and_in_order(judge):
    scene = next(
        scene
        for scene in (make_scene(22, index, num_objects=2) for index in range(20))
        if scene.layout == "left_of"
    )
    prompt = ScenePrompt(
        "a red star to the left of a blue ring",
        (Asked("star", "red"), Asked("ring", "blue")),
        "left_of",
    )
    assert judge.score(prompt, repainted(scene, [("star", "red"), ("ring", "blue")])) == {
        "colour": True,
        "place": True,
        "kind": True,
    }
    assert judge.score(prompt, repainted(scene, [("ring", "blue"), ("star", "red")])) == {
        "colour": True,
        "place": False,
        "kind": True,
    }
    assert not judge.score(prompt, repainted(scene, [("star", "blue"), ("ring", "green")]))[
        "colour"
    ]
    alone = draw(replace(scene, things=scene.things[:1]))
    assert not any(judge.score(prompt, alone).values())
    assert not judge.score(
        replace(prompt, place="above"), repainted(scene, [("star", "red"), ("ring", "blue")])
    )["place"]


def test_a_second_object_that_nobody_asked_for_is_wrong(judge):
    scene = next(
        scene
        for scene in (make_scene(22, index, num_objects=2) for index in range(20))
        if scene.layout == "left_of"
    )
    prompt = ScenePrompt("a red star on the left", (Asked("star", "red"),), "left")
    assert not any(
        judge.score(prompt, repainted(scene, [("star", "red"), ("ring", "blue")])).values()
    )
    alone = replace(scene, things=scene.things[:1])
    assert all(judge.score(prompt, repainted(alone, [("star", "red")])).values())


def test_noise_answers_nothing(judge):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert not any(judge.score(judge.prompts("one_object", 1, seed=0)[0], noise).values())


def test_the_middle_is_no_place():
    assert [place_of(centre) for centre in ((0.5, 0.55), (0.3, 0.45), (0.45, 0.8))] == [
        "middle",
        "left",
        "bottom",
    ]


def tables(kept_by_index):
    """What a download and a filter would have written, if exactly these items were kept."""
    items = plan(SETTINGS)
    keys = [f"{item.index:016x}" for item in items]
    status = ["http_404" if item.fault == "missing" else "ok" for item in items]
    samples = pa.table({"key": keys, "source": [item.url for item in items], "status": status})
    judged = [item for item in items if item.fault != "missing"]
    kept = [kept_by_index(item) for item in judged]
    reasons = [None if keep else "duplicate" for keep in kept]
    scores = pa.table(
        {
            "key": [keys[item.index] for item in judged],
            "kept": kept,
            "reason": pa.array(reasons, pa.string()),
        }
    )
    return samples, scores


def test_an_audit_of_a_perfect_filter(judge):
    audit = judge.audit(*tables(lambda item: item.fault is None))
    assert audit["good"] == {"planted": 300, "kept": 300}
    assert audit["caught"] == {"planted": 60, "caught": 60}
    assert all(type(fault["caught"]) is int for fault in audit["faults"].values())
    assert audit["faults"]["missing"]["reasons"] == {
        "http_404": audit["faults"]["missing"]["planted"]
    }


def test_an_audit_of_filters_that_keep_or_refuse_all(judge):
    everything = judge.audit(*tables(lambda item: True))
    missing = everything["faults"]["missing"]["planted"]
    assert everything["caught"] == {"planted": 60, "caught": missing}
    nothing = judge.audit(*tables(lambda item: False))
    assert nothing["good"] == {"planted": 300, "kept": 0}
    assert nothing["faults"]["blurred"]["caught"] == nothing["faults"]["blurred"]["planted"]
    # Refusing an original along with its copy is no way to catch the copy.
    assert nothing["faults"]["exact_duplicate"]["caught"] == 0
