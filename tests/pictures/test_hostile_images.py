"""Entries 41, 42 and 44 to 47 of the catalogue of faults where test_images.py does not have them:
bombs, and files of real makers.
"""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from hdm.pictures.reading import BadImage, decode, inspect
from hdm.pictures.settings import ImageSettings
from tests.pictures.test_images import chunk, encoded, photograph, png, shared

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = ImageSettings()


def gif_of_many_frames(count: int) -> bytes:
    """Each frame one transparent pixel in 22 bytes: the file of a pair of frames, its last one
    repeated.
    """
    frames = [Image.new("P", (64, 64), number) for number in (0, 1)]
    two = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    one = encoded(frames[0], "GIF")
    assert two[-1:] == b";"
    second = two[two.rindex(b"\x21\xf9\x04") : -1]
    assert len(second) < len(one)
    return two[:-1] + second * (count - 2) + b";"


def tiff_of_one_huge_tile() -> bytes:
    """16 × 16 pixels in a tile that claims 65520 × 65520."""
    data = bytearray(encoded(Image.new("RGB", (16, 16), "red"), "TIFF", compression="tiff_lzw"))
    place = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[place : place + 2], "little")
    for number in range(count):
        at = place + 2 + 12 * number
        tag = int.from_bytes(data[at : at + 2], "little")
        if tag in (273, 278, 279):  # strip offsets, rows a strip, strip sizes: now of a tile
            data[at : at + 2] = {273: 324, 278: 322, 279: 325}[tag].to_bytes(2, "little")
        if tag == 278:
            data[at + 8 : at + 12] = (65520).to_bytes(4, "little")
        if tag == 277:  # samples a pixel: a place for the tile's length
            data[at : at + 12] = (
                (323).to_bytes(2, "little")
                + (4).to_bytes(2, "little")
                + (1).to_bytes(4, "little")
                + (65520).to_bytes(4, "little")
            )
    return bytes(data)


def webp_of_a_huge_canvas() -> bytes:
    simple = encoded(Image.new("RGB", (16, 16), "red"), "WEBP", lossless=True)[12:]
    extended = (
        b"VP8X" + (10).to_bytes(4, "little") + bytes(4) + (16382).to_bytes(3, "little") * 2 + simple
    )
    return b"RIFF" + (4 + len(extended)).to_bytes(4, "little") + b"WEBP" + extended


BOMBS = {
    "png of 20000 x 20000": lambda: png(20_000, 20_000, 1, 0, b"\0" * 2501 * 20_000),
    "png with a text of 200 MB": lambda: png(
        4, 4, 8, 0, b"\0\7\7\7\7" * 4, chunk(b"zTXt", b"a\0\0" + _zeros(200_000_000))
    ),
    "png with a profile of 200 MB": lambda: png(
        4, 4, 8, 0, b"\0\7\7\7\7" * 4, chunk(b"iCCP", b"a\0\0" + _zeros(200_000_000))
    ),
    "png with more rows than its header says": lambda: png(64, 64, 8, 0, b"\0" * 300_000_000),
    "gif of 100000 frames": lambda: gif_of_many_frames(100_000),
    "tiff of one huge tile": tiff_of_one_huge_tile,
    "webp of a huge canvas": webp_of_a_huge_canvas,
}


def _zeros(count: int) -> bytes:
    import zlib

    return zlib.compress(b"\0" * count, 9)


GROWTH = """
    import sys
    from pathlib import Path
    from hdm.pictures.settings import ImageSettings
    from hdm.pictures.reading import BadImage, decode
    def peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    data = Path(sys.argv[1]).read_bytes()
    before = peak()
    try:
        said = decode(data, ImageSettings()).pixels.shape
    except BadImage as refusal:
        said = refusal.status
    print(peak() - before, said)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_bounded_memory(name: str, tmp_path: Path) -> None:
    """All would take gigabytes or hundreds of megabytes; Pillow itself lets no text or profile of a
    PNG grow beyond 1 and 64 MB.
    """
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[name]())
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GROWTH), str(path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    growth, said = done.stdout.strip().split(" ", 1)
    assert float(growth) < 100, done.stdout
    if name in ("gif of 100000 frames", "png with more rows than its header says"):
        assert said == "(64, 64, 3)"
    elif "huge" in name or "20000" in name:
        assert said in ("too_large", "corrupt")


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_or_several_pages_the_first_is_taken_or_none(name: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if name == "WEBP" else {}
    data = encoded(frames[0], name, save_all=True, append_images=frames[1:], **lossless)
    picture = decode(data, SETTINGS)
    assert "animated" in picture.flags
    np.testing.assert_allclose(picture.pixels, np.broadcast_to([255, 0, 0], (32, 32, 3)), atol=3)
    for reader in (inspect, decode):
        with pytest.raises(BadImage) as refusal:
            reader(data, ImageSettings(animated="reject"))
        assert refusal.value.status == "animated"


def test_real_animations_and_pages_are_told() -> None:
    folder = shared("robustness/pillow")
    for name in ("multipage.tiff", "dispose_prev.gif"):
        assert "animated" in decode((folder / name).read_bytes(), SETTINGS).flags, name
    assert "animated" not in decode((folder / "hopper.tif").read_bytes(), SETTINGS).flags


def test_a_real_jpeg_in_cmyk_looks_as_its_rgb_twin() -> None:
    """Photoshop's: YCCK, inverted, as printers want it; without its profile the colours are near,
    not equal.
    """
    folder = shared("robustness/pillow")
    found, twin = (
        decode((folder / f"pil_sample_{mode}.jpg").read_bytes(), SETTINGS).pixels.astype(int)
        for mode in ("cmyk", "rgb")
    )
    assert found.shape == twin.shape
    assert np.abs(found - twin).mean() < 8
    assert np.abs(255 - found - twin).mean() > 40


SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))


@pytest.mark.parametrize("primaries", [ADOBE, DISPLAY_P3])
@pytest.mark.parametrize("colour", [(150, 180, 100), (90, 60, 70), (255, 255, 255)])
def test_wider_primaries_are_brought_to_srgb_as_the_matrices_say(
    primaries: tuple[tuple[float, float], ...], colour: tuple[int, int, int]
) -> None:
    """Adobe's RGB and Display P3 under sRGB's curve, so that the primaries alone are told apart."""
    data = encoded(
        Image.new("RGB", (2, 2), colour), "PNG", icc_profile=_profile_with_primaries(primaries)
    )
    picture = decode(data, SETTINGS)
    assert picture.flags == ("icc",)
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    brought = np.linalg.solve(_to_xyz(SRGB), _to_xyz(primaries) @ linear).clip(0, 1)
    expected = (
        np.where(brought <= 0.0031308, 12.92 * brought, 1.055 * brought ** (1 / 2.4) - 0.055) * 255
    )
    np.testing.assert_allclose(picture.pixels[0, 0], expected, atol=2)
    assert colour == (255, 255, 255) or np.abs(expected - colour).max() > 4


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Linear RGB to XYZ under D65: columns of the primaries' chromaticities, scaled so that they
    make white together.
    """
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, np.array([0.9505, 1.0, 1.0891]))


def _profile_with_primaries(primaries: tuple[tuple[float, float], ...]) -> bytes:
    """sRGB's profile, with other primaries (x, y) under D65, adapted to D50 by Bradford's matrix,
    and another name.
    """
    bradford = np.array(
        [[1.0479, 0.0229, -0.0502], [0.0296, 0.9904, -0.0171], [-0.0092, 0.0151, 0.7519]]
    )
    adapted = bradford @ _to_xyz(primaries)
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(data[at : at + 4]): at
        for at in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)
    }
    for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T, strict=True):
        place = int.from_bytes(data[tags[tag] + 4 : tags[tag] + 8], "big") + 8
        data[place : place + 12] = b"".join(
            round(value * 65536).to_bytes(4, "big", signed=True) for value in column
        )
    return bytes(data).replace(
        "sRGB built-in".encode("utf-16-be"), "wider primary".encode("utf-16-be")
    )


def test_a_grey_profile_in_a_colour_picture_is_ignored_and_flagged() -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"GRAY"
    picture = decode(encoded(photograph(), "PNG", icc_profile=bytes(profile)), SETTINGS)
    assert picture.flags == ("icc_ignored",)
    np.testing.assert_array_equal(picture.pixels, np.asarray(photograph()))


def test_broken_exif_costs_no_picture() -> None:
    whole = encoded(photograph(), "JPEG", quality=95)
    for block in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1\x12" * 40,
    ):
        broken = whole[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + whole[2:]
        np.testing.assert_array_equal(
            decode(broken, SETTINGS).pixels, decode(whole, SETTINGS).pixels
        )
    folder = shared("robustness/pillow")
    for name in (
        "broken_exif_dpi.jpg",
        "exif_typeerror.jpg",
        "empty_gps_ifd.jpg",
        "multiple_exif.jpg",
    ):
        data = (folder / name).read_bytes()
        assert decode(data, SETTINGS).pixels.shape[:2] in (
            Image.open(io.BytesIO(data)).size[::-1],
            Image.open(io.BytesIO(data)).size,
        )


@pytest.mark.parametrize(
    "name", ["hopper_orientation_4.jpg", "hopper_orientation_8.jpg", "hopper_orientation_7.webp"]
)
def test_real_orientations_bring_the_same_picture_upright(name: str) -> None:
    folder = shared("robustness/pillow")
    upright = decode((folder / "hopper.jpg").read_bytes(), SETTINGS).pixels.astype(int)
    turned = decode((folder / name).read_bytes(), SETTINGS)
    assert "rotated" in turned.flags
    assert np.abs(turned.pixels - upright).mean() < 12
