"""Copies against a naive search with imagehash's own distance, and on real photographs remade in many ways."""

import io
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hdm.curation.duplicates import Fingerprints, find_copies
from hdm.curation.fingerprints import HASH_BITS, Fingerprint, fingerprint

PHOTOS = Path(__file__).resolve().parents[3] / "shared/data/photos/coco51/images"


def together(prints: list[Fingerprint]) -> Fingerprints:
    return Fingerprints.from_columns(
        [p.perceptual_hash for p in prints],
        [p.mirrored_hash for p in prints],
        [p.thumbnail for p in prints],
        [p.sha256 for p in prints],
    )


def copies(
    pictures: list[np.ndarray],
    distance: float = 0.08,
    colour: float = 4,
    fit: list[bool] | None = None,
    mirrored: bool = False,
):
    found = find_copies(
        together([fingerprint(p) for p in pictures]),
        np.array(fit or [True] * len(pictures)),
        distance,
        colour,
        mirrored,
    )
    return found.tolist()


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs at {PHOTOS}")
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(PHOTOS.glob("*.jpg"))]


def test_the_hash_is_imagehashs_and_the_pixel_hash_knows_the_shape():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    one = fingerprint(pixels)
    expected = imagehash.phash(Image.fromarray(pixels), hash_size=16).hash
    assert (
        np.unpackbits(np.frombuffer(one.perceptual_hash, np.uint8)).reshape(16, 16) == expected
    ).all()
    assert one.mirrored_hash == fingerprint(np.ascontiguousarray(pixels[:, ::-1])).perceptual_hash
    assert one.sha256 == fingerprint(pixels.copy()).sha256
    assert one.sha256 != fingerprint(pixels.reshape(60, 40, 3)).sha256


def naive(
    hashes: list[np.ndarray], thumbnails: np.ndarray, fit: np.ndarray, max_bits: int, colour: float
) -> list[int]:
    """One picture after the other, every pair compared with imagehash."""

    def near(a: int, b: int) -> bool:
        bits = imagehash.ImageHash(hashes[a]) - imagehash.ImageHash(hashes[b])
        difference = thumbnails[a].astype(float) - thumbnails[b]
        brightness = difference.mean()
        return (
            bits <= max_bits
            and abs(brightness) <= 32
            and np.abs(difference - brightness).mean() <= colour
        )

    found, originals = [-1] * len(fit), []
    for number in np.flatnonzero(fit).tolist():
        found[number] = next((original for original in originals if near(number, original)), -1)
        if found[number] < 0:
            originals.append(number)
    for number in np.flatnonzero(~fit).tolist():
        found[number] = next((original for original in originals if near(number, original)), -1)
    return found


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 170),
    drift=st.integers(0, 12),
    distance=st.sampled_from([0.004, 0.03, 0.06]),
)
def test_the_search_finds_what_a_naive_one_finds(seed, count, drift, distance):
    rng = np.random.default_rng(seed)
    bits = np.zeros((count, HASH_BITS), bool)
    thumbnails = np.zeros((count, 8, 8, 3), np.uint8)
    for number in range(count):  # families that drift apart, in mixed order
        parent = int(rng.integers(-3, number)) if number else -1
        bits[number] = rng.random(HASH_BITS) < 0.5 if parent < 0 else bits[parent]
        bits[number, rng.integers(0, HASH_BITS, drift)] ^= True
        shade = (
            rng.integers(0, 256, 3) if parent < 0 else thumbnails[parent] + rng.integers(-9, 9, 3)
        )
        thumbnails[number] = np.clip(shade, 0, 255)
    fit = rng.random(count) < 0.8
    packed = [np.packbits(row).tobytes() for row in bits]
    prints = Fingerprints.from_columns(
        packed, packed, [t.tobytes() for t in thumbnails], [""] * count
    )
    expected = naive(
        [row.reshape(16, 16) for row in bits], thumbnails, fit, int(distance * HASH_BITS), 4
    )
    assert find_copies(prints, fit, distance, 4).tolist() == expected


def remade(photo: np.ndarray) -> list[np.ndarray]:
    picture = Image.fromarray(photo)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=40)
    smaller = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    brighter = np.clip(photo * 1.05 + 3, 0, 255).astype(np.uint8)
    return [np.asarray(Image.open(buffer)), np.asarray(smaller), brighter]


def test_real_photographs_are_kept_apart_and_their_copies_found(photos):
    made = [(number, copy) for number, photo in enumerate(photos[:12]) for copy in remade(photo)]
    assert copies([*photos, *(copy for _, copy in made)]) == [-1] * len(photos) + [
        number for number, _ in made
    ]


def test_mirror_images_are_copies_only_where_asked(photos):
    pictures = [
        *photos[:6],
        *(np.asarray(ImageOps.mirror(Image.fromarray(photo))) for photo in photos[:6]),
    ]
    assert copies(pictures) == [-1] * 12
    assert copies(pictures, mirrored=True) == [-1] * 6 + list(range(6))


def test_distance_0_takes_equal_pixels_alone(photos):
    nearly = photos[0].copy()
    nearly[0, 0] ^= 1
    assert copies([photos[0], nearly, photos[0]], distance=0) == [-1, -1, 0]


def test_a_bad_copy_never_displaces_a_good_original(photos):
    assert copies([photos[0], photos[0], photos[0]], fit=[False, True, True]) == [1, -1, 1]
    assert copies([photos[0], photos[0]], fit=[False, False]) == [-1, -1]


def test_one_shape_in_two_colours_is_two_pictures():
    red, blue = (np.full((64, 64, 3), 240, np.uint8) for _ in range(2))
    red[16:48, 16:48], blue[16:48, 16:48] = (200, 30, 30), (30, 60, 200)
    assert copies([red, blue]) == [-1, -1]
    assert copies([red, blue], colour=255, distance=0.2) == [-1, 0]


def test_a_copy_may_be_brighter_as_a_whole_but_black_is_not_white(photos):
    brighter = np.clip(photos[0].astype(int) + 20, 0, 255).astype(np.uint8)
    assert copies([photos[0], brighter]) == [-1, 0]
    blanks = [np.full((64, 64, 3), grey, np.uint8) for grey in (0, 128, 255, 255)]
    assert copies(blanks) == [-1, -1, -1, 2]
