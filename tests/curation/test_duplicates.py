"""Copies as the web makes them, of real photographs and drawings; who is kept; which pictures
belong together.
"""

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.fft import dctn

from hdm.curation import candidates, duplicates
from hdm.curation.candidates import divide
from hdm.curation.comparison import (
    HOPELESS,
    align,
    colours_agree,
    correlate,
    mirror,
    shows_enough,
)
from hdm.curation.duplicates import (
    Criterion,
    find_copies,
    find_families,
    find_pairs,
    same_meaning,
)
from hdm.curation.fingerprints import (
    RECORD,
    VIEWS,
    boxes_within,
    find_frame,
    fingerprint,
    perceptual_hashes,
)
from hdm.curation.settings import FilterSettings

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared/data"
PHOTOS = DATA / "photos/coco51/images"
EMOJI = DATA / "emoji/noto128"
Picture = Image.Image


def bench():
    spec = importlib.util.spec_from_file_location("bench_duplicates", ROOT / "bench/duplicates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def records(pictures: Sequence[np.ndarray | Picture]) -> np.ndarray:
    return np.frombuffer(b"".join(fingerprint(np.asarray(p)).record for p in pictures), RECORD)


def default() -> Criterion:
    chosen = FilterSettings()
    assert chosen.duplicate_distance is not None
    return Criterion(chosen.duplicate_distance, chosen.duplicate_difference)


def pairs_of(pictures: Sequence[np.ndarray | Picture], criterion: Criterion) -> list[list[int]]:
    pairs: list[list[int]] = find_pairs(
        records(pictures), np.arange(len(pictures)), criterion
    ).tolist()
    return pairs


@pytest.fixture(scope="module")
def photos() -> list[Picture]:
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs at {PHOTOS}")
    return [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]


def test_the_hash_is_the_one_that_imagehash_defines():
    """Lowest 8 × 8 frequencies of 32 × 32 pixels against their median; the DCT is scipy's."""
    views = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    for view, found in zip(views, perceptual_hashes(views), strict=True):
        low = dctn(view.astype(float))[:8, :8]
        bits = np.unpackbits(np.array([found]).view(np.uint8)).reshape(8, 8).astype(bool)
        assert (bits == (low > np.median(low))).all()


def test_the_hash_of_pixels_knows_the_shape():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert fingerprint(pixels).sha256 == fingerprint(pixels.copy()).sha256
    assert fingerprint(pixels).sha256 != fingerprint(pixels.reshape(60, 40, 3)).sha256


def test_a_border_of_one_colour_is_no_part_of_the_frame(photos):
    bordered = ImageOps.expand(photos[0], (30, 20, 0, 10), "white")
    width, height = bordered.size
    expected = [30 / width, 20 / height, 1, 1 - 10 / height]
    assert find_frame(np.asarray(bordered)) == pytest.approx(expected, abs=2e-3)
    assert find_frame(np.asarray(photos[0])).tolist() == [0, 0, 1, 1]


WANTED = {
    "crop, 5 % off each side": 0.95,
    "crop, 5 % in all": 0.95,
    "crop, 10 % off each side": 0.9,
    "crop at a corner, 10 %, left and top off": 0.8,
    "crop at a corner, 10 %, right and bottom off": 0.8,
    "border 2 %, white": 0.95,
    "border 2 %, red, JPEG": 0.95,
    "rotation 2°, black corners": 0.95,
    "rotation -2°, white corners": 0.95,
    "brightness 0.7": 0.95,
    "contrast 1.3": 0.95,
    "saturation 0.5": 0.95,
    "greyscale": 0.95,
    "watermark, a tenth of the height": 0.95,
    "watermark, 10 % opaque": 0.95,
    "JPEG, quality 30": 0.95,
    "half as large": 0.95,
}


def test_changed_photographs_are_found_and_none_is_taken_for_another(photos):
    """At the default, on photographs and their halves, which show different things."""
    originals = [half for photo in photos for half in halves(photo)]
    before = records(originals)
    count = len(originals)
    changes = bench().CHANGES
    for name, least in WANTED.items():
        after = records([changes[name](original) for original in originals])
        pairs = find_pairs(np.concatenate([before, after]), np.arange(2 * count), default())
        assert (pairs[:, 1] - pairs[:, 0] == count).all(), name
        assert len(pairs) >= least * count, name


def halves(photo: Picture) -> list[Picture]:
    width, height = photo.size
    return [photo.crop((0, 0, width // 2, height)), photo.crop((width // 2, 0, width, height))]


def test_unrelated_crops_are_kept_apart(photos):
    found = bench().make_unrelated(photos, 1300, seed=3)
    pairs = find_pairs(found, np.arange(len(found)), default())
    assert (pairs[:, 0] % len(photos) == pairs[:, 1] % len(photos)).all()


# Crops of different photographs whose hashes are near and which have an edge or two in common:
# file, box, transposition, twice.
LIKE_EACH_OTHER = [
    [("000000216794", 528, 2, 103, 123, 3), ("000000256353", 452, 74, 159, 110, 4)],
    [("000000177977", 493, 201, 121, 83, 6), ("000000084284", 33, 35, 206, 135, 7)],
    [("000000174375", 357, 242, 154, 127, 0), ("000000084284", 151, 284, 99, 88, 2)],
    [("000000084284", 50, 50, 104, 127, 7), ("000000516008", 11, 181, 118, 164, 0)],
    [("000000196393", 53, 222, 115, 80, 0), ("000000256353", 431, 456, 162, 175, 3)],
    [("000000174632", 328, 0, 110, 78, 4), ("000000084284", 72, 21, 139, 162, 6)],
]


def test_different_pictures_with_an_edge_in_common_are_no_copies(photos):
    for pair in LIKE_EACH_OTHER:
        assert pairs_of([crop_of(*one) for one in pair], default()) == []


def crop_of(name: str, left: int, top: int, width: int, height: int, turned: int) -> Picture:
    photo = Image.open(PHOTOS / f"{name}.jpg").convert("RGB")
    photo.thumbnail((bench().LONGER_SIDE_PX,) * 2)
    part = photo.crop((left, top, left + width, top + height))
    return part.transpose(Image.Transpose(turned - 1)) if turned else part


def test_mirror_images_are_copies_only_where_asked(photos):
    pictures = [*photos[:6], *map(ImageOps.mirror, photos[:6])]
    pictures[7] = ImageOps.expand(pictures[7], 12, "white")
    assert pairs_of(pictures, default()) == []
    mirrored = Criterion(0.16, mirrored=True)
    assert pairs_of(pictures, mirrored) == [[number, number + 6] for number in range(6)]
    drawn = Criterion(0.16, difference=10, mirrored=True)
    assert [0, 6] in pairs_of(pictures, drawn)


def test_one_shape_in_two_colours_is_two_pictures():
    red, blue, grey = (np.full((64, 64, 3), 240, np.uint8) for _ in range(3))
    for pixels, colour in ((red, (200, 30, 30)), (blue, (30, 60, 200)), (grey, (90, 90, 90))):
        pixels[16:48, 16:40] = colour
    assert pairs_of([red, blue], default()) == []
    assert pairs_of([red, blue, grey], Criterion(0.16, difference=10)) == []


def test_blank_pictures_are_copies_only_if_their_pixels_are_equal():
    blanks = [np.full((64, 64, 3), grey, np.uint8) for grey in (0, 128, 255)]
    assert pairs_of(blanks, default()) == []


def emoji() -> tuple[list[str], list[Picture]]:
    """Base names, without skin tones and hair, and pictures on white."""
    if not EMOJI.is_dir():
        pytest.skip(f"no emoji at {EMOJI}")
    lines = (EMOJI / "metadata.dev.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if not row["skin_tone"]]
    pictures = []
    for row in rows:
        picture = Image.open(EMOJI / row["file_name"]).convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        pictures.append(Image.alpha_composite(ground, picture).convert("RGB"))
    return [row["name"].split(":")[0] for row in rows], pictures


def test_emoji_of_different_names_are_kept_apart_and_their_copies_found():
    names, pictures = emoji()
    smaller = [picture.resize((122, 122), Image.Resampling.BICUBIC) for picture in pictures[:300]]
    copies = [bench().jpeg(85)(picture) for picture in smaller]
    found = find_pairs(
        records([*pictures, *copies]),
        np.arange(len(pictures) + len(copies)),
        Criterion(0.16, difference=10),
    )
    names += names[:300]
    assert [(names[a], names[b]) for a, b in found if names[a] != names[b]] == []
    own = found[found[:, 1] - found[:, 0] == len(pictures)]
    assert len(own) >= 0.95 * len(copies)


def naive_pairs(table: np.ndarray, criterion: Criterion) -> list[list[int]]:
    """All pairs of pictures in all ways, with nothing left out."""
    max_bits = int(criterion.distance * 64)
    everything = np.array([[0.0, 0.0, 1.0, 1.0]])
    found = []
    for a, b in itertools.permutations(range(len(table)), 2):
        one, other = table[[a]], table[[b]]
        turns = [(one["whole"], one["views"][:, 0], one)]
        if criterion.mirrored:
            turned = one["mirrored"]
            turns.append((turned[:, 1], turned[:, 0], mirror(one)))
        for of_whole, of_frame, mine in turns:
            compared = []
            if a < b and np.bitwise_count(of_whole ^ other["whole"])[0] <= max_bits:
                compared.append((everything, everything))
            for view in range(len(VIEWS)):
                near = np.bitwise_count(of_frame ^ other["views"][:, view])[0] <= max_bits
                if near and (view or a < b):
                    boxes = [
                        boxes_within(side["frame"], np.array([number]))
                        for side, number in ((mine, 0), (other, view))
                    ]
                    compared.append((boxes[0], boxes[1]))
            if any(alike(mine, other, *boxes) for boxes in compared):
                found.append(sorted((a, b)))
    return sorted(map(list, set(map(tuple, found))))


def alike(one: np.ndarray, other: np.ndarray, my_box: np.ndarray, their_box: np.ndarray) -> bool:
    agree = align(one, my_box, other, their_box, 2)[0] >= duplicates.MIN_CORRELATION
    hopeful = correlate(one, my_box, other, their_box)[0] > duplicates.MIN_CORRELATION - HOPELESS
    return bool(agree and hopeful and colours_agree(one, other)[0])


@pytest.mark.parametrize("mirrored", [False, True])
def test_bands_and_shortcuts_find_what_comparing_everything_finds(photos, monkeypatch, mirrored):
    changes = bench().CHANGES
    pictures: list[Picture] = []
    for number, photo in enumerate(photos[:8]):
        small = photo.resize((160, 120))
        pictures += [small, ImageOps.mirror(small)]
        pictures += [change(small) for change in list(changes.values())[number::6]]
    pictures += [Image.new("RGB", (64, 64), (grey, grey, grey)) for grey in range(0, 250, 50)]
    table = records(pictures)
    criterion = Criterion(0.16, mirrored=mirrored)
    expected = naive_pairs(table, criterion)
    everyone = np.arange(len(table))
    for crowd, batch, bands in ((64, 1 << 24, None), (1, 40, 4)):
        monkeypatch.setattr(duplicates, "CROWD", crowd)
        monkeypatch.setattr(duplicates, "BATCH", batch)
        if bands:
            monkeypatch.setattr(candidates, "choose_bands", lambda n, m, r: divide(r, 6))
        assert find_pairs(table, everyone, criterion, threads=3).tolist() == expected


def test_what_shows_too_little_agrees_with_nothing(photos):
    """Whatever the other picture: itself, others, sharper ones."""
    rng = np.random.default_rng(0)
    faint = []
    for photo in photos[:12]:
        pixels = np.asarray(photo.resize((96, 96)), float)
        for strength in (0.0, 0.02, 0.05, 0.1, 0.2, 0.5):
            one = 128 + strength * (pixels - 128)
            one[:, : rng.integers(0, 96)] = 128
            faint.append(one.astype(np.uint8))
    table = records([*faint, *photos[:12]])
    box = np.array([[0.0, 0.0, 1.0, 1.0]])
    enough = shows_enough(table, box, duplicates.MIN_CORRELATION)
    assert 6 < enough.sum() < len(table) - 6
    for number in np.flatnonzero(~enough):
        mine = np.repeat(table[[number]], len(table))
        assert (align(mine, box, table, box.repeat(len(table), 0), 2) < 0.78).all()


def test_very_many_pictures_of_next_to_nothing_are_no_candidates():
    """Uniform pictures share a hash by the hundred, and no pair of them is looked at."""
    blank = [np.full((32, 32, 3), 40 + number % 20, np.uint8) for number in range(2000)]
    table = records(blank)
    assert len(np.unique(table["whole"])) <= 20
    assert list(duplicates._candidates(table, np.arange(len(table)), default())) == []
    assert find_pairs(table, np.arange(len(table)), default()).tolist() == []


def naive_copies(near: Callable[[int, int], bool], order: list[int], fit: np.ndarray) -> list[int]:
    found, kept = [-1] * len(order), list[int]()
    for number in [n for n in order if fit[n]] + [n for n in order if not fit[n]]:
        found[number] = next((best for best in kept if near(best, number)), -1)
        if found[number] < 0 and fit[number]:
            kept.append(number)
    return found


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), links=st.integers(0, 60))
def test_each_copy_joins_the_best_kept_picture_that_it_is_near_to(seed, count, links):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, count, count)  # equal numbers: equal pixels
    groups = np.array([int(np.flatnonzero(pixels == value)[0]) for value in pixels])
    firsts = np.unique(groups)
    pairs = np.unique(np.sort(rng.choice(firsts, (links, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    linked = set(map(tuple, pairs.tolist()))
    order = rng.permutation(count)
    fit = rng.random(count) < 0.8

    def near(a: int, b: int) -> bool:
        one, other = sorted((int(groups[a]), int(groups[b])))
        return one == other or (one, other) in linked

    expected = naive_copies(near, order.tolist(), fit)
    assert find_copies(groups, pairs, order, fit).tolist() == expected


def test_a_chain_does_not_collapse():
    """0 – 1 – 2 – 3: the ends are nobody's copies, though all are one family."""
    chain = np.array([[0, 1], [1, 2], [2, 3]])
    everyone = np.arange(4)
    fit = np.ones(4, bool)
    assert find_copies(everyone, chain, everyone, fit).tolist() == [-1, 0, -1, 2]
    assert len(set(find_families(everyone, chain).tolist())) == 1
    assert find_copies(everyone, chain, np.array([1, 0, 2, 3]), fit).tolist() == [1, -1, 1, -1]


def test_families_follow_pairs_and_equal_pixels():
    groups = np.array([0, 1, 0, 3, 4, 3])
    families = find_families(groups, np.array([[1, 3]])).tolist()
    assert families[0] == families[2] != families[1]
    assert families[1] == families[3] == families[5] != families[4]


def test_pictures_of_one_meaning_are_those_whose_embeddings_are_near(monkeypatch):
    monkeypatch.setattr(duplicates, "MEANINGS", 64)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 16)).astype(np.float32)
    vectors[290] = vectors[3] + 0.01 * vectors[4]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = np.argwhere(np.triu(vectors @ vectors.T >= 0.7, 1))
    found = same_meaning(vectors, 0.7, "cpu")
    assert sorted(found.tolist()) == near.tolist()
    assert [3, 290] in found.tolist()
