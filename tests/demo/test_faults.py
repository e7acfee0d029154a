import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from hdm.acquisition.settings import ScenesSettings
from hdm.demo.faults import FAULTS, MANNERS, file_bytes, plan, scene_of
from hdm.demo.scenes import draw

SETTINGS = ScenesSettings(count=500, seed=3, faults=0.2)


@pytest.fixture(scope="module")
def items():
    return plan(SETTINGS)


def pixels_of(item, items):
    picture = Image.open(io.BytesIO(file_bytes(item, SETTINGS, items)))
    picture.load()
    return np.asarray(picture.convert("RGB"), np.float32)


def sharpness(pixels):
    grey = pixels.mean(2)
    return np.var(
        grey[1:-1, 1:-1] * 4 - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    )


def test_the_plan_has_what_the_settings_ask_for(items):
    assert items == plan(SETTINGS)
    assert [item.index for item in items] == list(range(600))
    faults = Counter(item.fault for item in items)
    assert faults[None] == 500
    assert set(faults) == {None, *FAULTS}
    for fault, share in FAULTS.items():
        assert abs(faults[fault] - share * 100) <= 2, fault
    assert {item.manner for item in items if item.fault is None} == {None, *MANNERS}
    assert sum(not item.captions for item in items) == 50
    assert sorted(item.scene for item in items if item.fault is None) == list(range(500))
    assert len({item.url for item in items}) == 600


def test_copies_follow_good_originals(items):
    for item in items:
        if item.original is not None:
            original = items[item.original]
            assert original.index < item.index
            assert original.fault is None
            assert original.scene == item.scene


def test_exact_duplicates_share_bytes_and_near_ones_only_the_picture(items):
    for item in items:
        if item.fault == "exact_duplicate":
            assert file_bytes(item, SETTINGS, items) == file_bytes(
                items[item.original], SETTINGS, items
            )
        if item.fault == "near_duplicate":
            copy, original = pixels_of(item, items), pixels_of(items[item.original], items)
            assert copy.shape != original.shape
            small = [
                np.asarray(
                    Image.fromarray(p.astype(np.uint8)).resize((16, 16), Image.Resampling.BOX),
                    float,
                )
                for p in (copy, original)
            ]
            assert np.abs(small[0] - small[1]).mean() < 14


def test_good_pictures_are_their_scenes(items):
    for item in items[:60]:
        if item.fault is None:
            assert np.abs(pixels_of(item, items) - draw(scene_of(item, SETTINGS))).mean() < 3


def test_broken_files_do_not_decode(items):
    for item in items:
        if item.fault in ("corrupt", "not_image"):
            with pytest.raises((OSError, SyntaxError)):
                pixels_of(item, items)


def test_spoiled_pictures_are_spoiled(items):
    good = [sharpness(pixels_of(item, items)) for item in items[:200] if item.fault is None]
    for item in items:
        if item.fault == "too_small":
            assert min(pixels_of(item, items).shape[:2]) <= 32
        if item.fault == "blurred":
            assert sharpness(pixels_of(item, items)) < min(good)
        if item.fault == "noisy":
            assert sharpness(pixels_of(item, items)) > max(good)


def test_wrong_captions_name_nothing_that_is_there(items):
    for item in items:
        things = scene_of(item, SETTINGS).things
        for caption in item.captions:
            named = set(re.findall("[a-z]+", caption))
            if item.fault == "mislabelled":
                assert not any(thing.kind in named or thing.colour in named for thing in things)
            else:
                assert all(thing.kind in named and thing.colour in named for thing in things)
