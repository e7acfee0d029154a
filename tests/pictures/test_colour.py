"""Colour that a file says in numbers, against the formulas of the specifications: sRGB's curve,
powers, matrices made of primaries.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from hdm.pictures.reading import BadImage, decode, inspect
from hdm.pictures.settings import ImageSettings
from tests.pictures.test_hostile_images import DISPLAY_P3, SRGB, _to_xyz
from tests.pictures.test_images import HEIF, chunk, encoded, photograph, png

SETTINGS = ImageSettings()
BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
COLOURS = np.array([(150, 180, 100), (90, 60, 70), (255, 255, 255), (12, 3, 30), (0, 0, 0)])
Primaries = tuple[tuple[float, float], ...]


def srgb(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: grey levels of linear light."""
    light = np.clip(linear, 0, 1)
    levels: np.ndarray = 255 * np.where(
        light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
    )
    return levels


def linear_of_srgb(levels: np.ndarray) -> np.ndarray:
    value = np.asarray(levels) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def brought(primaries: Primaries, linear: np.ndarray) -> np.ndarray:
    """Linear light of D65 primaries as that of sRGB's; colours along the last axis."""
    return linear @ np.linalg.solve(_to_xyz(SRGB), _to_xyz(primaries)).T


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def chrm(primaries: Primaries) -> bytes:
    values = [0.3127, 0.3290, *(value for xy in primaries for value in xy)]
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


def cicp(*numbers: int) -> bytes:
    return chunk(b"cICP", bytes(numbers))


def colours(extra: bytes) -> bytes:
    """COLOURS in one row of 8 bits."""
    return png(len(COLOURS), 1, 8, 2, b"\0" + COLOURS.astype(np.uint8).tobytes(), extra)


def test_a_linear_png_is_as_bright_as_its_light() -> None:
    """gAMA 1.0: half the light is grey level 188, not 128."""
    picture = decode(png(3, 1, 8, 0, b"\0" + bytes([0, 128, 255]), gama(1.0)), SETTINGS)
    assert picture.flags == ("gamma",)
    np.testing.assert_array_equal(
        picture.pixels[0, :, 0], np.rint(srgb(np.array([0, 128, 255]) / 255))
    )
    assert picture.pixels[0, 1].tolist() == [188, 188, 188]


@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8, 0.35, 1 / 2.6])
def test_a_gamma_is_a_power(gamma: float) -> None:
    expected = srgb((COLOURS / 255) ** (1 / (round(gamma * 100_000) / 100_000)))
    np.testing.assert_allclose(
        decode(colours(gama(gamma)), SETTINGS).pixels[0], expected, atol=0.51
    )


def test_16_bits_of_linear_light_keep_their_dark_levels() -> None:
    """In 8 bits the levels from 0 to 13 would be one."""
    samples = np.arange(0, 300, 7)
    expected = srgb(samples / 65535)
    assert np.ptp(expected) > 14
    grey = png(len(samples), 1, 16, 0, b"\0" + samples.astype(">u2").tobytes(), gama(1.0))
    rgb = np.repeat(samples, 3).reshape(-1, 3)
    rgb[:, 1] = samples[::-1]
    colour = png(len(samples), 1, 16, 2, b"\0" + rgb.astype(">u2").tobytes(), gama(1.0))
    rgba = np.concatenate([rgb, np.full((len(samples), 1), 65535)], 1).astype(">u2")
    see_through = png(len(samples), 1, 16, 6, b"\0" + rgba.tobytes(), gama(1.0))
    for data in (grey, colour, see_through):
        picture = decode(data, SETTINGS)
        assert picture.flags == ("gamma", "sixteen_bit")
        np.testing.assert_allclose(picture.pixels[0, :, 0], expected, atol=0.51)
    for data in (colour, see_through):
        np.testing.assert_allclose(
            decode(data, SETTINGS).pixels[0, :, 1], expected[::-1], atol=0.51
        )


def test_transparent_linear_pixels_show_the_matte_as_it_is() -> None:
    rgba = np.array([[65535, 0, 0, 0], [32896, 32896, 32896, 65535]], ">u2")
    picture = decode(
        png(2, 1, 16, 6, b"\0" + rgba.tobytes(), gama(1.0)), ImageSettings(matte="#102030")
    )
    assert picture.pixels[0].tolist() == [[0x10, 0x20, 0x30], [188, 188, 188]]


@pytest.mark.parametrize("primaries", [DISPLAY_P3, BT2020])
def test_chromaticities_are_brought_to_srgb_as_the_matrices_say(primaries: Primaries) -> None:
    picture = decode(colours(gama(1 / 2.2) + chrm(primaries)), SETTINGS)
    expected = srgb(brought(primaries, (COLOURS / 255) ** (1 / 0.45455)))
    np.testing.assert_allclose(picture.pixels[0], expected, atol=1)
    assert np.abs(expected - COLOURS).max() > 8


def test_what_says_srgb_changes_nothing() -> None:
    ordinary = chrm(SRGB)
    for extra in (
        gama(0.45455),
        gama(0.45455) + ordinary,
        ordinary,
        chunk(b"sRGB", b"\0") + gama(1.0),
        cicp(1, 13, 0, 1),
        cicp(2, 2, 0, 1),
    ):
        picture = decode(colours(extra), SETTINGS)
        np.testing.assert_array_equal(picture.pixels[0], COLOURS)
        assert picture.flags == ()


@pytest.mark.parametrize(
    ("numbers", "curve", "primaries"),
    [
        ((12, 13, 0, 1), linear_of_srgb, DISPLAY_P3),
        ((9, 8, 0, 1), lambda levels: levels / 255, BT2020),
        ((1, 4, 0, 1), lambda levels: (levels / 255) ** 2.2, SRGB),
        ((12, 8, 0, 0), lambda levels: ((levels - 16) / 219).clip(0, 1), DISPLAY_P3),
    ],
)
def test_code_points_of_cicp(numbers: tuple[int, ...], curve, primaries: Primaries) -> None:
    picture = decode(colours(cicp(*numbers)), SETTINGS)
    assert picture.flags == ("cicp",)
    expected = srgb(brought(primaries, curve(COLOURS.astype(float))))
    np.testing.assert_allclose(picture.pixels[0], expected, atol=1)


def test_bt709_curve() -> None:
    """H.273: V = 1.099 L^0.45 - 0.099, and 4.5 L below 0.018."""
    light = np.array([0.005, 0.1, 0.5, 1.0])
    samples = np.where(light < 0.018054, 4.5 * light, 1.09929683 * light**0.45 - 0.09929683)
    data = png(
        4, 1, 16, 0, b"\0" + np.rint(samples * 65535).astype(">u2").tobytes(), cicp(1, 1, 0, 1)
    )
    np.testing.assert_allclose(decode(data, SETTINGS).pixels[0, :, 0], srgb(light), atol=0.6)


def test_precedence_is_that_of_the_third_edition() -> None:
    """cICP, iCCP, sRGB, then gAMA and cHRM."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    linear, as_it_is = srgb(COLOURS / 255), COLOURS
    with_profile = encoded(
        Image.fromarray(COLOURS[None].astype(np.uint8)), "PNG", icc_profile=profile
    )
    after_header = with_profile.index(b"IHDR") + 4 + 13 + 4

    def inserted(extra: bytes) -> bytes:
        return with_profile[:after_header] + extra + with_profile[after_header:]

    cases = [
        (colours(cicp(1, 8, 0, 1) + chunk(b"sRGB", b"\0")), linear, ("cicp",)),
        (inserted(cicp(1, 8, 0, 1)), linear, ("cicp",)),
        (inserted(gama(1.0)), as_it_is, ("icc",)),
        (colours(chunk(b"sRGB", b"\0") + gama(1.0)), as_it_is, ()),
        (colours(gama(1.0)), linear, ("gamma",)),
    ]
    for data, expected, flags in cases:
        picture = decode(data, SETTINGS)
        assert picture.flags == flags
        np.testing.assert_allclose(picture.pixels[0], expected, atol=0.51)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((9, 16, 0, 1), "PQ"),
        ((9, 18, 0, 1), "HLG"),
        ((99, 13, 0, 1), "99"),
        ((1, 13, 6, 1), "matrix 6"),
    ],
)
def test_colour_without_a_defined_white_is_refused_with_the_reason(
    numbers: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(BadImage, match=reason) as refusal:
        decode(colours(cicp(*numbers)), SETTINGS)
    assert refusal.value.status == "unsupported"
    assert refused_by_header(colours(cicp(*numbers))) == str(refusal.value)


def refused_by_header(data: bytes) -> str:
    """So that a download counts the picture as refused, where it would be too late in a later
    stage.
    """
    with pytest.raises(BadImage) as refusal:
        inspect(data, SETTINGS)
    return str(refusal.value)


def test_numbers_without_a_defined_white_are_refused_by_the_header_already() -> None:
    tiff = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    assert "no defined white" in refused_by_header(tiff)
    assert "PQ" in refused_by_header((HEIF / "pq.heic").read_bytes())


def test_numbers_that_are_no_colour_are_ignored_and_flagged() -> None:
    for extra in (gama(0.0), gama(1.0) + chunk(b"cHRM", bytes(32)), chrm(((0.3, 0.3),) * 3)):
        picture = decode(colours(extra), SETTINGS)
        assert picture.flags == ("colour_ignored",)
        np.testing.assert_array_equal(picture.pixels[0], COLOURS)


def test_the_code_points_of_heic_and_avif_count_too() -> None:
    """A file that says Display P3 by numbers; one of high dynamic range is refused, not shown
    pale.
    """
    truth = np.asarray(photograph(96, 64))
    expected = srgb(brought(DISPLAY_P3, linear_of_srgb(truth)))
    picture = decode((HEIF / "display_p3.heic").read_bytes(), SETTINGS)
    assert picture.flags == ("cicp",)
    assert np.abs(picture.pixels - expected).mean() < 3
    with pytest.raises(BadImage, match="PQ"):
        decode((HEIF / "pq.heic").read_bytes(), SETTINGS)
    avif = encoded(photograph(96, 64), "AVIF", quality=100, subsampling="4:4:4")
    place = avif.index(b"colrnclx") + 8
    assert decode(avif, SETTINGS).flags == ()
    p3 = avif[:place] + struct.pack(">HH", 12, 13) + avif[place + 4 :]
    picture = decode(p3, SETTINGS)
    assert picture.flags == ("cicp",)
    assert np.abs(picture.pixels - expected).mean() < 3
    with pytest.raises(BadImage, match="HLG"):
        decode(avif[:place] + struct.pack(">HH", 9, 18) + avif[place + 4 :], SETTINGS)


def test_the_profile_of_a_jpeg_2000_counts(tmp_path: Path) -> None:
    """Put into its header by hand: Pillow writes none."""
    whole = encoded(photograph(), "JPEG2000")
    place = whole.index(b"colr") - 4
    size = int.from_bytes(whole[place : place + 4], "big")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    box = struct.pack(">I", 11 + len(profile)) + b"colr\2\0\0" + profile
    header = whole.index(b"jp2h") - 4
    grown = int.from_bytes(whole[header : header + 4], "big") + len(box) - size
    data = whole[:header] + struct.pack(">I", grown) + whole[header + 4 : place] + box
    picture = decode(data + whole[place + size :], SETTINGS)
    assert picture.flags == ("icc",)
    np.testing.assert_array_equal(picture.pixels, np.asarray(photograph()))


def test_a_camera_s_preview_is_not_taken_for_its_picture() -> None:
    """RAW files are TIFFs whose first page is a small preview of what no TIFF reader shows."""
    preview = Image.new("RGB", (16, 12), "red")
    for tags in ({254: 1, 330: 8}, {50706: b"\1\4\0\0"}):
        with pytest.raises(BadImage, match="RAW") as refusal:
            decode(encoded(preview, "TIFF", tiffinfo=tags), SETTINGS)
        assert refusal.value.status == "unsupported"
