"""Pictures whose look is known, made here or by cameras, and files that must be refused."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from hdm.pictures.formats import HEAD_BYTES, foreign_format, sniff
from hdm.pictures.reading import FORMATS, BadImage, decode, inspect
from hdm.pictures.settings import ImageSettings

HEIF = Path(__file__).resolve().parent / "heif"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SETTINGS = ImageSettings()


def shared(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"shared/data/{folder} is not here")
    return path


WRITTEN = [name for name in FORMATS if name != "HEIF"]
"""Formats that Pillow writes; HEIC files lie in a folder."""


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def photograph(width: int = 48, height: int = 32) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(
        np.stack([x * 255 // width, y * 255 // height, (x + y) * 3 % 256], -1).astype(np.uint8)
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes = b"", extra: bytes = b""
) -> bytes:
    """A PNG written by hand, so that its samples are known without Pillow."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# What a picture must look like


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF", "JPEG2000"])
def test_lossless_formats_give_their_pixels(name):
    image = photograph()
    picture = decode(encoded(image, name), SETTINGS)
    assert picture.format == name
    assert picture.flags == ()
    np.testing.assert_array_equal(picture.pixels, np.asarray(image))


@pytest.mark.parametrize(
    ("name", "options"),
    [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("AVIF", {"quality": 95})],
)
def test_lossy_formats_come_close(name, options):
    image = photograph()
    picture = decode(encoded(image, name, **options), SETTINGS)
    assert picture.format == name
    assert np.abs(picture.pixels.astype(int) - np.asarray(image)).mean() < 6


@pytest.mark.parametrize("name", ["plain", "turned", "two"])
def test_heic_comes_close_and_upright(name):
    """A telephone's file says its rotation twice, in HEIF's own terms and in EXIF: it is applied
    once.
    """
    data, truth = (HEIF / f"{name}.heic").read_bytes(), np.asarray(photograph(96, 64)).astype(int)
    picture = decode(data, SETTINGS)
    assert picture.format == "HEIF"
    assert picture.flags == (("animated",) if name == "two" else ())
    assert np.abs(picture.pixels - truth).mean() < 3
    header = inspect(data, SETTINGS)
    assert (header.format, header.width, header.height) == ("HEIF", 96, 64)


def test_a_transparent_heic_shows_the_matte():
    picture = decode((HEIF / "transparent.heic").read_bytes(), ImageSettings(matte="#00ff00"))
    assert picture.flags == ("transparent",)
    assert np.abs(picture.pixels[:, :44].astype(int) - (0, 255, 0)).mean() < 3
    truth = np.asarray(photograph(96, 64))[:, 52:].astype(int)
    assert np.abs(picture.pixels[:, 52:] - truth).mean() < 3


def test_16_bit_grey_is_scaled_and_not_clipped():
    samples = [0, 128, 257, 32768, 65278, 65535]
    data = png(6, 1, 16, 0, b"\0" + struct.pack(">6H", *samples))
    picture = decode(data, SETTINGS)
    assert picture.pixels[0, :, 0].tolist() == [round(sample / 257) for sample in samples]
    assert picture.flags == ("sixteen_bit",)


def test_16_bit_grey_with_a_transparent_value_shows_the_matte_there():
    data = png(
        3,
        1,
        16,
        0,
        b"\0" + struct.pack(">3H", 0, 1000, 65535),
        extra=chunk(b"tRNS", struct.pack(">H", 1000)),
    )
    picture = decode(data, ImageSettings(matte="#102030"))
    assert picture.pixels[0].tolist() == [[0, 0, 0], [0x10, 0x20, 0x30], [255, 255, 255]]


def test_16_bit_colour_spans_black_to_white():
    data = png(
        3, 1, 16, 2, b"\0" + struct.pack(">9H", 0, 32768, 65535, 65535, 65535, 65535, 257, 257, 257)
    )
    picture = decode(data, SETTINGS)
    np.testing.assert_allclose(
        picture.pixels[0], [[0, 128, 255], [255, 255, 255], [1, 1, 1]], atol=1
    )


def test_12_bit_tiff_white_is_white():
    # Little-endian, one strip of two 12-bit samples: 0xfff and 0x800.
    entries = [
        (256, 2),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 200),
        (277, 1),
        (278, 1),
        (279, 3),
    ]
    fields = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    header = b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + struct.pack("<I", 0)
    picture = decode(header.ljust(200, b"\0") + bytes([0xFF, 0xF8, 0x00]), SETTINGS)
    assert picture.pixels[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_the_colour_hidden_under_transparency_is_never_shown(name):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (255, 0, 0, 0)
    rgba[2] = (200, 100, 0, 128)
    rgba[3] = (1, 2, 3, 255)
    picture = decode(
        encoded(Image.fromarray(rgba), name, lossless=True), ImageSettings(matte="#00ff00")
    )
    assert (picture.pixels[:2] == (0, 255, 0)).all()
    expected = [
        round(colour * 128 / 255 + matte * 127 / 255)
        for colour, matte in zip((200, 100, 0), (0, 255, 0), strict=True)
    ]
    np.testing.assert_allclose(picture.pixels[2], np.tile(expected, (4, 1)), atol=1)
    assert (picture.pixels[3] == (1, 2, 3)).all()
    assert picture.flags == ("transparent",)


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(name):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    picture = decode(encoded(image, name, transparency=0), ImageSettings(matte="#123456"))
    assert picture.pixels[0].tolist() == [[0x12, 0x34, 0x56], [0, 0, 255]]


def test_transparent_grey():
    image = Image.fromarray(np.array([[[10, 255], [200, 0]]], np.uint8), "LA")
    picture = decode(encoded(image, "PNG"), ImageSettings(matte="#ff0000"))
    assert picture.pixels[0].tolist() == [[10, 10, 10], [255, 0, 0]]


def test_one_bit_and_grey():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert decode(encoded(image, "PNG"), SETTINGS).pixels[0].tolist() == [
        [0, 0, 0],
        [255, 255, 255],
    ]
    assert decode(encoded(Image.new("L", (1, 1), 77), "PNG"), SETTINGS).pixels[0].tolist() == [
        [77, 77, 77]
    ]


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk_primaries(name):
    image = Image.new("CMYK", (64, 16), (0, 0, 0, 0))
    image.paste((0, 255, 255, 0), (0, 0, 16, 16))
    image.paste((0, 0, 0, 255), (16, 0, 32, 16))
    picture = decode(encoded(image, name), SETTINGS)
    np.testing.assert_allclose(
        picture.pixels[8, [8, 24, 56]], [[255, 0, 0], [0, 0, 0], [255, 255, 255]], atol=4
    )


def test_lab_grey_stays_grey():
    picture = decode(encoded(Image.new("LAB", (4, 4), (137, 128, 128)), "TIFF"), SETTINGS)
    # L* = 53.7: sRGB grey 128 to within the rounding of 8-bit L*.
    np.testing.assert_allclose(picture.pixels[0, 0], [128, 128, 128], atol=3)


def test_a_profile_is_brought_to_srgb():
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert decode(
        encoded(Image.new("RGB", (2, 2), (9, 9, 9)), "PNG", icc_profile=linear), SETTINGS
    ).flags == ("icc_ignored",)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decode(encoded(photograph(), "PNG", icc_profile=srgb), SETTINGS)
    np.testing.assert_array_equal(same.pixels, np.asarray(photograph()))
    assert same.flags == ("icc",)


def test_swapped_primaries_of_a_profile_are_swapped_back():
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(srgb[at : at + 4]): at
        for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132], "big"), 12)
    }
    # The file claims that its red channel is blue light: exchange where the two tags point, and the
    # name that says sRGB.
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    srgb[red + 4 : red + 12], srgb[blue + 4 : blue + 12] = (
        srgb[blue + 4 : blue + 12],
        srgb[red + 4 : red + 12],
    )
    swapped = bytes(srgb).replace(
        "sRGB built-in".encode("utf-16-be"), "swapped chan.".encode("utf-16-be")
    )
    picture = decode(
        encoded(Image.new("RGB", (2, 2), (250, 120, 10)), "PNG", icc_profile=swapped), SETTINGS
    )
    np.testing.assert_allclose(picture.pixels[0, 0], [10, 120, 250], atol=2)


def test_a_broken_profile_is_ignored_and_flagged():
    picture = decode(encoded(photograph(), "PNG", icc_profile=b"nonsense" * 20), SETTINGS)
    assert picture.flags == ("icc_ignored",)
    np.testing.assert_array_equal(picture.pixels, np.asarray(photograph()))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(name, orientation):
    image = photograph()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, name, exif=exif, quality=95)
    picture = decode(data, SETTINGS)
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert picture.pixels.shape == upright.shape
    assert np.abs(picture.pixels - upright).mean() < 6
    header = inspect(data, SETTINGS)
    assert (header.height, header.width) == upright.shape[:2]
    assert ("rotated" in picture.flags) == (orientation > 1)


def test_photographs_with_orientation():
    pictures = [
        decode(
            (shared("photos/exif_orientation") / f"Landscape_{n}.jpg").read_bytes(), SETTINGS
        ).pixels
        for n in (1, 6, 8)
    ]
    small = [
        np.asarray(Image.fromarray(pixels).resize((90, 60))).astype(int) for pixels in pictures
    ]
    assert pictures[0].shape[1] > pictures[0].shape[0]
    assert {pixels.shape for pixels in pictures} == {pictures[0].shape}
    assert np.abs(small[0] - small[1]).mean() < 12
    assert np.abs(small[0] - small[2]).mean() < 12


def test_an_animation_gives_its_first_frame_or_is_rejected():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    picture = decode(data, SETTINGS)
    assert picture.flags == ("animated",)
    assert (picture.pixels == (255, 0, 0)).all()
    for reader in (inspect, decode):
        with pytest.raises(BadImage) as refusal:
            reader(data, ImageSettings(animated="reject"))
        assert refusal.value.status == "animated"


def test_one_artwork_in_many_formats_looks_the_same():
    folder = shared("photos/met_public_domain")
    truth = decode((folder / "hibiscus.regular.png").read_bytes(), SETTINGS).pixels.astype(int)
    for name in (
        "hibiscus.regular.jpeg",
        "hibiscus.regular.lossless.webp",
        "hibiscus.regular.lossy.webp",
    ):
        assert np.abs(decode((folder / name).read_bytes(), SETTINGS).pixels - truth).mean() < 8, (
            name
        )


# What must be refused


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html><body>404</body></html>",
        b"PK\x03\x04abcd",
        b"BMW is not a bitmap, and this text is long enough",
        b"\0" * 64,
        b"GIF",
        b"<html><body><svg/></body></html>",
        b"P1 is a plan",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    ],
)
def test_what_is_no_picture(data):
    for reader in (inspect, decode):
        with pytest.raises(BadImage) as refusal:
            reader(data, SETTINGS)
        assert refusal.value.status == "not_image"


FOREIGN = [
    ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ("PDF", b"%PDF-1.7\n"),
    ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    (
        "SVG",
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<!DOCTYPE svg PUBLIC 'x' 'y'>\n<svg>",
    ),
    ("JPEG XL", b"\xff\x0a\xfa\x1f"),
    ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl "),
    ("PSD", b"8BPS\0\1\0\0"),
    ("XCF", b"gimp xcf v011\0"),
    ("ICO", b"\0\0\1\0\1\0"),
    ("PNM", b"P6\n# made\n2 2\n255\n"),
    ("RAW", b"II*\0\x10\0\0\0CR\2\0"),
    ("RAW", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"),
    ("RAW", b"FUJIFILMCCD-RAW 0201"),
]


@pytest.mark.parametrize(("name", "data"), FOREIGN)
def test_known_formats_that_are_not_read_are_refused_by_name(name, data):
    assert sniff(data) is None
    assert foreign_format(data) == name
    for reader in (inspect, decode):
        with pytest.raises(BadImage) as refusal:
            reader(data, SETTINGS)
        assert refusal.value.status == "unsupported"
        assert refusal.value.message == f"{name}: not read; convert it to PNG"


def test_the_first_bytes_tell_the_format_whatever_the_name():
    files = {name: encoded(photograph(), name) for name in WRITTEN}
    files["HEIF"] = (HEIF / "plain.heic").read_bytes()
    for name, data in files.items():
        assert sniff(data) == sniff(data[:HEAD_BYTES]) == name
        assert foreign_format(data) is None


def test_every_real_file_is_recognised_by_its_first_bytes():
    for path in sorted(path for path in shared("robustness").rglob("*") if path.is_file()):
        data = path.read_bytes()
        assert sniff(data[:HEAD_BYTES]) == sniff(data), path.name
        assert foreign_format(data[:HEAD_BYTES]) == foreign_format(data), path.name


@pytest.mark.parametrize(
    ("width", "height"),
    [(12000, 12000), (20000, 20000), (65535, 1), (1, 65535), (2**31 - 1, 2**31 - 1)],
)
def test_sizes_are_refused_from_the_header(width, height):
    headers = [png(width, height, 8, 2)]
    if max(width, height) < 2**16:
        jpeg = bytearray(encoded(photograph(), "JPEG"))
        frame = jpeg.index(b"\xff\xc0")
        jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
        headers.append(bytes(jpeg))
    for data in headers:
        for reader in (inspect, decode):
            with pytest.raises(BadImage) as refusal:
                reader(data, SETTINGS)
            assert refusal.value.status == "too_large"


@pytest.mark.parametrize("name", FORMATS)
def test_cut_files_are_corrupt(name):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    heic = (HEIF / "plain.heic").read_bytes()
    data = heic if name == "HEIF" else encoded(Image.fromarray(noise), name)
    for part in (0.1, 0.6, 0.95):
        with pytest.raises(BadImage) as refusal:
            decode(data[: int(len(data) * part)], SETTINGS)
        assert refusal.value.status == "corrupt"


def test_a_jpeg_two_bytes_short_is_corrupt():
    with pytest.raises(BadImage, match="corrupt"):
        decode(encoded(photograph(), "JPEG")[:-2], SETTINGS)


def test_floating_point_samples_are_refused_aloud():
    with pytest.raises(BadImage) as refusal:
        decode(encoded(Image.new("F", (4, 4), 0.5), "TIFF"), SETTINGS)
    assert refusal.value.status == "unsupported"


# What must never happen


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about each broken tag
@pytest.mark.parametrize(
    "folder", ["robustness/pillow", "robustness/pngsuite", "photos/met_public_domain"]
)
def test_every_odd_file_is_a_picture_or_a_refusal(folder):
    """Size in the header and size of the pixels agree; no message holds an address of the
    moment.
    """
    statuses, messages = [], []
    for path in sorted(path for path in shared(folder).rglob("*") if path.is_file()):
        data = path.read_bytes()
        try:
            picture = decode(data, SETTINGS)
        except BadImage as refusal:
            statuses.append(refusal.status)
            messages.append(refusal.message)
            continue
        header = inspect(data, SETTINGS)
        assert picture.pixels.shape == (header.height, header.width, 3)
        assert picture.pixels.dtype == np.uint8
        assert header.format == picture.format
        statuses.append("ok")
    assert statuses.count("ok") > 0.6 * len(statuses)
    assert not [message for message in messages if not message or " at 0x" in message]


def test_pngsuite_reference_pictures_agree_with_pillow_and_srgb_s_formula():
    """8-bit opaque files, which all say gAMA 1.0: the light that an independent reading gives."""
    paths = sorted(shared("robustness/pngsuite").glob("bas*[2]c08.png"))
    assert paths
    for path in paths:
        light = np.asarray(Image.open(path).convert("RGB")) / 255
        curved = 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
        levels = 255 * np.where(light <= 0.0031308, 12.92 * light, curved)
        assert path.read_bytes().count(b"gAMA\0\1\x86\xa0") == 1
        np.testing.assert_allclose(decode(path.read_bytes(), SETTINGS).pixels, levels, atol=0.51)


@settings(max_examples=60)
@given(
    name=st.sampled_from(list(FORMATS)),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_mutated_files_are_pictures_or_refusals(name, changes):
    heic = (HEIF / "plain.heic").read_bytes()
    data = bytearray(heic if name == "HEIF" else encoded(photograph(), name))
    for place, value in changes:
        data[int(place * len(data))] = value
    with contextlib.suppress(BadImage):
        assert decode(bytes(data), SETTINGS).pixels.shape[2] == 3


@given(data=st.binary(max_size=64))
def test_sniffing_takes_any_bytes(data):
    assert sniff(data) in {None, *FORMATS}
    assert sniff(data) is None or foreign_format(data) is None
