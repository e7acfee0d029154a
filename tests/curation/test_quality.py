"""Sharpness and noise against what is known of drawn edges, drawn noise, real photographs and
scenes.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hdm.curation.sharpness import noise, sharpness, to_grey
from hdm.demo.scenes import draw, make_scene

PHOTOS = Path(__file__).resolve().parents[3] / "shared/data/photos/coco51/images"


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    return [draw(make_scene(11, index)) for index in range(60)]


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs at {PHOTOS}")
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(PHOTOS.glob("*.jpg"))]


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def with_noise(pixels: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return np.clip(pixels + drawn, 0, 255).round().astype(np.uint8)


def test_grey_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    assert (
        np.abs(to_grey(pixels) - np.asarray(Image.fromarray(pixels).convert("L"), np.float32)).max()
        <= 0.51
    )


@pytest.mark.parametrize("contrast", [40, 200])
@pytest.mark.parametrize("sigma", [1.5, 2.5, 4.0])
def test_a_gaussian_edge_has_the_sharpness_of_its_second_derivative(sigma, contrast):
    # A step of height 1 blurred by a Gaussian has the second derivative x / s³ φ(x / s), greatest
    # at x = s: 0.242 / s².
    erf = np.vectorize(math.erf)
    edge = 20 + contrast * 0.5 * (1 + erf((np.arange(128) - 63.5) / (sigma * np.sqrt(2))))
    grey = np.tile(edge.astype(np.float32), (128, 1))
    assert sharpness(grey) == pytest.approx(0.242 / sigma**2, rel=0.1)


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_one_colour_has_neither_sharpness_nor_noise(colour):
    grey = np.full((64, 80), colour, np.float32)
    assert sharpness(grey) == 0
    assert noise(grey) == 0


@pytest.mark.parametrize("sigma", [2.0, 5.0, 20.0])
def test_white_noise_is_told_by_its_standard_deviation(sigma):
    grey = (128 + np.random.default_rng(1).normal(0, sigma, (256, 256))).astype(np.float32)
    assert noise(grey) == pytest.approx(sigma, rel=0.15)


def test_tiny_and_thin_pictures_have_values():
    for shape in ((1, 1), (2, 50), (3, 3), (5, 400), (20, 20)):
        grey = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
        assert np.isfinite([sharpness(grey), noise(grey)]).all()


def test_drawings_are_not_noisy_and_noise_is_found_on_them(scenes):
    assert max(noise(to_grey(scene)) for scene in scenes) < 3.8
    assert (
        min(noise(to_grey(with_noise(scene, 10, number))) for number, scene in enumerate(scenes))
        > 3.8
    )


def test_blurred_scenes_are_told_from_sharp_ones_whatever_their_colours(scenes):
    assert min(sharpness(to_grey(scene)) for scene in scenes) > 0.4
    assert max(sharpness(to_grey(blurred(scene, 2))) for scene in scenes) < 0.3


def test_photographs_are_told_from_blurred_and_from_noisy_ones(photos):
    assert min(sharpness(to_grey(photo)) for photo in photos) > 0.3
    assert max(sharpness(to_grey(blurred(photo, 2))) for photo in photos) < 0.3
    assert max(noise(to_grey(photo)) for photo in photos) < 3.6
    assert (
        min(noise(to_grey(with_noise(photo, 10, number))) for number, photo in enumerate(photos))
        > 3.6
    )
