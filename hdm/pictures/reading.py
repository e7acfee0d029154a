"""Turn picture files of unknown origin into upright RGB with a defined look, or refuse them with a
reason.

Pillow alone clips 16-bit grey to white, shows the colour hidden under transparent pixels, ignores
EXIF orientation and ICC profiles, only warns of pictures of 89 megapixels, and would hand EPS to a
PostScript interpreter. Here `hdm.pictures.formats` decides the format by the first bytes, from a
short list, and its reader is called directly; sizes are checked before anything is decoded.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pi_heif
from PIL import Image, ImageCms, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from hdm.pictures.boxes import colour_boxes
from hdm.pictures.colour import Colour, UnsupportedColour, of_code_points, of_gamma
from hdm.pictures.formats import foreign_format, sniff

# Its import takes as long as all others together, and processes that decode are started often.
if TYPE_CHECKING:
    from hdm.pictures.settings import ImageSettings

MAX_SIDE_PX = 32_768
"""Longer pictures are refused, however thin: 65535 × 1 is an attack or an accident."""

FORMATS: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
    "HEIF": pi_heif.HeifImageFile,
    "JPEG2000": Jpeg2KImageFile,
}

COUNTED = frozenset({"PNG", "WEBP", "AVIF", "HEIF"})
"""Formats whose readers know the number of frames without looking for it."""

# Only the main picture of a HEIF file is wanted, and there is already one process for each core.
pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
pi_heif.options.DECODE_THREADS = 1

# EXIF orientation → the operation that brings the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):  # noqa: N818  (what is bad is the image; nothing went wrong here)
    """A file that is refused.

    Args:
        status: one word: not_image, corrupt, too_large, too_many_scans, too_many_frames, animated,
            unsupported, too_much_memory; and from `hdm.pictures.decoding` too_slow and crashes.
        message: a sentence, the same on every machine.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Header:
    """What the header says: Pillow's name of the format, and the upright size in pixels."""

    format: str
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Args:
        pixels: (H, W, 3) uint8, sRGB, upright, on the matte.
        format: Pillow's name, as "JPEG".
        flags: what was done or ignored, of: animated, rotated, exif_ignored, sixteen_bit, cicp,
            icc, icc_ignored, gamma, colour_ignored, transparent.
    """

    pixels: np.ndarray
    format: str
    flags: tuple[str, ...]


def inspect(data: bytes, settings: ImageSettings) -> Header:
    """Read a file's header, without decoding its pixels.

    Args:
        data: the file.
        settings: limits and what to do with animations.

    Raises:
        BadImage: no picture, damaged, over a limit, an animation where these are rejected, or of a
            colour without a defined white in sRGB (32-bit numbers, PQ, HLG).
    """
    name, image = _open(data, settings)
    with _guarded(name):
        size = _upright_size(image, _orientation(image)[0])
        _colour(name, data, image, set())
        return Header(name, *size)


def decode(data: bytes, settings: ImageSettings) -> Picture:
    """Decode a file to sRGB as a person would see it.

    16-bit grey is scaled, 16-bit colour loses its low byte unless its curve is not sRGB's; CMYK,
    LAB and pictures with an ICC profile are converted to sRGB (a profile that is broken or of
    another colour space is ignored and flagged), and so is what a PNG, HEIF or AVIF file says of
    its colour in numbers; transparent pixels show `settings.matte`; EXIF orientation is applied; of
    an animation the first frame is taken.

    Args:
        data: the file.
        settings: matte, limits and what to do with animations.

    Raises:
        BadImage: as `inspect`, and where the pixels cannot be read to the last one.
    """
    name, image = _open(data, settings)
    with _guarded(name):
        # Metadata first: when Pillow loads the pixels, it applies or drops some of it.
        flags: set[str] = {"animated"} if getattr(image, "is_animated", False) else set()
        orientation, known = _orientation(image)
        bits = _bits(image)
        colour = _colour(name, data, image, flags)
        image.load()
        if colour and bits > 8 and name == "PNG":
            picture, alpha = _from_16_bits(data, image, colour)
            flags.add("sixteen_bit")
        else:
            picture, alpha = _srgb(image, bits, flags)
            if colour:
                picture = Image.fromarray(colour.to_srgb(np.asarray(picture)))
        if alpha is not None and alpha.getextrema() != (255, 255):
            flags.add("transparent")
            ground = Image.new("RGB", picture.size, settings.matte)
            ground.paste(picture, mask=alpha)
            picture = ground
        # Pillow turns TIFFs itself, while loading.
        if orientation in _UPRIGHT and name != "TIFF":
            picture = picture.transpose(_UPRIGHT[orientation])
        flags.update(
            ["rotated"] if orientation in _UPRIGHT else [], [] if known else ["exif_ignored"]
        )
        return Picture(np.array(picture), name, tuple(sorted(flags)))


def _open(data: bytes, settings: ImageSettings) -> tuple[str, ImageFile.ImageFile]:
    """The format and Pillow's image, its header read and its size allowed, nothing decoded."""
    name = sniff(data)
    if name is None:
        raise _refusal(data)
    with _guarded(name):
        image = FORMATS[name](BytesIO(data))
        width, height = image.size
        # All limits that need no decoding.
        if min(width, height) < 1:
            raise BadImage("corrupt", f"{width} × {height} pixels are no picture")
        if max(width, height) > MAX_SIDE_PX or width * height >= settings.max_megapixels * 1e6:
            raise BadImage("too_large", f"{width} × {height} pixels are more than are taken")
        if isinstance(image, TiffImageFile) and _is_raw(image):
            raise BadImage("unsupported", "RAW: not read; convert it to PNG")
        if name == "JPEG" and has_more_scans(data, settings.max_scans):
            raise BadImage("too_many_scans", f"more than images.max_scans = {settings.max_scans}")
        if name in COUNTED and getattr(image, "n_frames", 1) > settings.max_frames:
            raise BadImage(
                "too_many_frames", f"more than images.max_frames = {settings.max_frames}"
            )
        if settings.animated == "reject" and getattr(image, "is_animated", False):
            raise BadImage("animated", "an animation or a file of several pages")
    return name, image


def reduced(pixels: np.ndarray, side_px: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 whose shorter side is at least twice `side_px`, as means of squares
    of its pixels; others as they are.
    """
    factor = min(pixels.shape[:2]) // side_px
    return np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels


def has_more_scans(jpeg: bytes, most: int) -> bool:
    """Whether a JPEG file's first picture has more than `most` scans; nothing is decoded."""
    if jpeg.count(b"\xff\xda") <= most:  # thumbnails and profiles may hold the marker too
        return False
    place, scans = 2, 0
    while scans <= most and (match := _MARKER.search(jpeg, place)):
        marker = match.group()[-1]
        place = match.end()
        if marker == 0xD9:
            return False
        scans += marker == 0xDA
        place += int.from_bytes(jpeg[place : place + 2], "big")
    return scans > most


# In compressed data 0xff only precedes 0 or a restart marker. Markers 1 and 0xd8 have no length.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.S)


def _refusal(data: bytes) -> BadImage:
    """Why a file in none of the formats is refused."""
    if not data:
        return BadImage("not_image", "the file is empty")
    foreign = foreign_format(data)
    if foreign:
        return BadImage("unsupported", f"{foreign}: not read; convert it to PNG")
    return BadImage("not_image", f"not a picture in a known format ({', '.join(FORMATS)})")


@contextlib.contextmanager
def _guarded(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into a refusal with a stable text."""
    try:
        yield
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("too_much_memory", f"{name}: there is not enough memory") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_large", f"{name}: more pixels than are taken") from error
    except Exception as error:  # on hostile bytes Pillow's readers raise any kind there is
        # Without addresses of objects, which differ from run to run.
        said = re.sub(r"\s*<?[\w.]*\S* at 0x[0-9a-fA-F]+>?", "", str(error))[:200]
        raise BadImage(
            "corrupt", f"{name} cannot be decoded: {said or type(error).__name__}"
        ) from error


def _orientation(image: ImageFile.ImageFile) -> tuple[int, bool]:
    """EXIF orientation 1 to 8, and whether the EXIF block could be read. Call it before loading."""
    if isinstance(image, PngImageFile) and "exif" not in image.info:
        return 1, True  # Pillow would decode all to look for a chunk behind the pixels
    try:
        orientation = image.getexif().get(Base.Orientation, 1)
    except Exception:  # noqa: BLE001  (as above; a broken block is no reason to lose the picture)
        return 1, False
    return (orientation, True) if orientation in range(1, 9) else (1, False)


def _upright_size(image: ImageFile.ImageFile, orientation: int) -> tuple[int, int]:
    width, height = image.size
    # Pillow gives a TIFF's size upright already.
    return (height, width) if orientation >= 5 and image.format != "TIFF" else (width, height)


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits of a sample in the file; exact where they are more than 8."""
    if isinstance(image, TiffImageFile):
        bits: tuple[int, ...] = image.tag_v2.get(258, (8,))
        return max(bits)
    return 16 if any(";16" in str(tile.args) for tile in image.tile) else 8


def _is_raw(image: TiffImageFile) -> bool:
    """Whether a camera wrote it: what a TIFF reader finds is a preview, or values that are not
    developed.
    """
    is_preview = bool(image.tag_v2.get(254, 0) & 1) and 330 in image.tag_v2
    return is_preview or 50706 in image.tag_v2  # DNG's version


def _colour(name: str, data: bytes, image: ImageFile.ImageFile, flags: set[str]) -> Colour | None:
    """The colour that a file states in numbers, if it applies and is not sRGB. Call it before
    loading.

    Raises:
        BadImage: it has no defined white in sRGB.
    """
    if image.mode in ("I", "F"):
        raise BadImage("unsupported", "32-bit or floating-point samples have no defined white")
    if name == "PNG":
        return _png_colour(data, image, flags)
    if name == "JPEG2000":
        profiles = [box[3:] for box in colour_boxes(data) if box[:1] in (b"\2", b"\3")]
        # Pillow does not read them.
        if profiles:
            image.info["icc_profile"] = profiles[0]
    if "icc_profile" in image.info:
        return None
    code_points: tuple[int, int] | None = None
    if name == "HEIF" and (profile := image.info.get("nclx_profile")):
        code_points = profile["color_primaries"], profile["transfer_characteristics"]
    if name == "AVIF":
        nclx_boxes = (box for box in colour_boxes(data) if box[:4] == b"nclx" and len(box) >= 8)
        code_points = next((struct.unpack_from(">HH", box, 4) for box in nclx_boxes), None)
    return _by_code_points(*code_points, False, flags) if code_points else None


def _png_colour(data: bytes, image: ImageFile.ImageFile, flags: set[str]) -> Colour | None:
    """By the third edition's precedence: cICP, iCCP, sRGB, then gAMA and cHRM."""
    code_points = _cicp(data)
    if code_points is not None:
        primaries, transfer, matrix, full = code_points
        if matrix != 0 or full > 1:
            raise BadImage("unsupported", f"PNG: cICP with matrix {matrix} and range {full}")
        # cICP takes precedence over a profile.
        image.info.pop("icc_profile", None)
        return _by_code_points(primaries, transfer, not full, flags)
    if "icc_profile" in image.info or "srgb" in image.info:
        return None
    try:
        colour = of_gamma(image.info.get("gamma"), image.info.get("chromaticity"))
    except UnsupportedColour:
        flags.add("colour_ignored")
        return None
    flags.update(["gamma"] if colour else [])
    return colour


def _by_code_points(primaries: int, transfer: int, narrow: bool, flags: set[str]) -> Colour | None:
    try:
        colour = of_code_points(primaries, transfer, narrow)
    except UnsupportedColour as error:
        raise BadImage("unsupported", f"the picture's colour is not read: {error}") from error
    flags.update(["cicp"] if colour else [])
    return colour


def _cicp(png: bytes) -> bytes | None:
    """The content of a PNG's cICP chunk, which Pillow does not keep."""
    place = 8
    while True:
        length = int.from_bytes(png[place : place + 4], "big")
        kind = png[place + 4 : place + 8]
        if kind in (b"IDAT", b"IEND", b""):
            return None
        if kind == b"cICP" and length == 4:
            return png[place + 8 : place + 12]
        place += 12 + length


def _from_16_bits(
    data: bytes, image: ImageFile.ImageFile, colour: Colour
) -> tuple[Image.Image, Image.Image | None]:
    """RGB in sRGB and alpha or None, of a PNG with 16 bits a sample: linear light in 8 bits has too
    few dark levels.
    """
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        alpha = _split(image, 16)[1]
        return Image.fromarray(colour.to_srgb(grey)).convert("RGB"), alpha
    straight, alpha = _split(image, 16)
    samples = np.asarray(straight.convert("RGB"))
    if image.mode in ("RGB", "RGBA"):
        # Pillow keeps the high bytes; read as little-endian samples, it keeps the low ones.
        low = PngImageFile(BytesIO(data))
        low.tile = [tile._replace(args=str(tile.args).replace("16B", "16L")) for tile in low.tile]
        low.info.pop("transparency", None)
        low.load()
        samples = (samples.astype(np.uint16) << 8) | np.asarray(low)[..., :3]
    return Image.fromarray(colour.to_srgb(samples)), alpha


def _srgb(image: Image.Image, bits: int, flags: set[str]) -> tuple[Image.Image, Image.Image | None]:
    """RGB in sRGB, and alpha or None."""
    profile = image.info.get("icc_profile")
    if bits > 8:
        flags.add("sixteen_bit")
    image, alpha = _split(image, bits)
    if profile:
        converted = _by_profile(image, profile)
        flags.add("icc_ignored" if converted is None else "icc")
        if converted is not None:
            return converted, alpha
    if image.mode == "LAB":
        return _transform(image, ImageCms.createProfile("LAB")), alpha
    return image.convert("RGB"), alpha


def _split(image: Image.Image, bits: int) -> tuple[Image.Image, Image.Image | None]:
    """The picture without its transparency in 8 bits a sample, and the transparency as L or
    None.
    """
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        alpha = (
            None
            if transparent is None
            else Image.fromarray(np.where(grey == transparent, 0, 255).astype(np.uint8))
        )
        white = (1 << bits) - 1
        return (
            Image.fromarray(((grey * 255 + white // 2) // white).clip(0, 255).astype(np.uint8)),
            alpha,
        )
    if bits > 8 and isinstance(transparent, tuple):
        # As Pillow cut the samples.
        image.info["transparency"] = tuple(sample >> 8 for sample in transparent)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or image.has_transparency_data:
        mode = "LA" if image.mode in ("LA", "La", "L", "1") else "RGBA"
        straight = image if image.mode == mode else image.convert(mode)
        return straight.convert(straight.mode[:-1]), straight.getchannel("A")
    return image.convert("RGB") if image.mode == "P" else image, None


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Converted to sRGB by the file's profile; None if it is broken or of another colour space than
    the samples.
    """
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        if image.mode in ("L", "1"):
            image = image.convert("RGB" if space == "RGB" else "L")
        elif image.mode == "YCbCr":
            image = image.convert("RGB")
        if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space) != image.mode:
            return None
        # Nothing to convert: a conversion could only round.
        if space == "RGB" and (opened.profile.profile_description or "").startswith("sRGB"):
            return image
        return _transform(image, opened)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None


def _transform(
    image: Image.Image,
    profile: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile,  # type: ignore[name-defined]
) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None  # only an in-place conversion returns nothing
    return converted
