"""Which format a file is in, by its first bytes and never by its name."""

from __future__ import annotations

import re

from PIL import features

HEAD_BYTES = 512
"""`sniff` and `foreign_format` look at no more bytes of a file than this."""

_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIF": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"},
}
# These state the structure and not the codec; AVIF files list them too.
_HEIF_WITHOUT_CODEC = {b"mif1", b"msf1"}
_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124)}

# Formats that people have and that are not read, each with how its files begin.
_FOREIGN: dict[str, tuple[bytes, ...]] = {
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "JPEG XR": (b"II\xbc\x01", b"II\xbc\0"),
    "PSD": (b"8BPS",),
    "PDF": (b"%PDF-",),
    "EPS": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "RAW": (
        *(b"II*\0\x10\0\0\0CR\2", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FUJIFILMCCD-RAW"),
        *(b"FOVb", b"\0MRM", b"HEAPCCDR"),
    ),
    "XCF": (b"gimp xcf",),
    "ICO": (b"\0\0\1\0",),
    "ICNS": (b"icns",),
    "OpenEXR": (b"v/1\1",),
    "Radiance HDR": (b"#?RADIANCE", b"#?RGBE"),
    "DDS": (b"DDS ",),
    "QOI": (b"qoif",),
    "DjVu": (b"AT&TFORM",),
    "MNG": (b"\x8aMNG\r\n\x1a\n", b"\x8bJNG\r\n\x1a\n"),
    "FLIF": (b"FLIF",),
    "BPG": (b"BPG\xfb",),
}
_PNM = re.compile(rb"P[1-7][ \t\r\n](#|[ \t\r\n]*\d|WIDTH)")
_SVG = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE svg[^>]*>|\s)*<svg\b", re.S
)


def sniff(data: bytes) -> str | None:
    """The format that a file's first bytes promise.

    Args:
        data: the file, or its first `HEAD_BYTES`.

    Returns:
        Pillow's name, as "JPEG"; None if it is no format that is read here.
    """
    start = data[:12]
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith(b"RIFF") and start[8:] == b"WEBP":
        return "WEBP"
    if start.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return "JPEG2000"
    # TIFF and BigTIFF in both byte orders. Canon's raw files begin like a TIFF.
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return None if data[8:11] == b"CR\2" else "TIFF"
    # "BM" begins many a text; the size of BMP's second header does not.
    if start.startswith(b"BM") and data[14:18] in _BMP_HEADERS:
        return "BMP"
    if start[4:8] == b"ftyp":
        return _by_brands(data)
    return None


def foreign_format(data: bytes) -> str | None:
    """The name of a picture format that is known and not read here, as "JPEG XL" or "SVG"; None for
    anything else.

    Args:
        data: the file, or its first `HEAD_BYTES`.
    """
    head = data[:HEAD_BYTES]
    for name, beginnings in _FOREIGN.items():
        if head.startswith(beginnings):
            return name
    if head[4:12] == b"ftypcrx ":
        return "RAW"
    # Pillow may be built without AVIF.
    if head[4:8] == b"ftyp" and _brands(head)[:1] in ([b"avif"], [b"avis"]):
        return None if features.check("avif") else "AVIF"
    if _PNM.match(head):
        return "PNM"
    return "SVG" if _SVG.match(head) else None


def _by_brands(data: bytes) -> str | None:
    """The format of an ISO base media file: by its major brand, else by those it claims to be
    compatible with.
    """
    brands = _brands(data)
    for brand in brands:
        for name, own in _BRANDS.items():
            if brand in own:
                return name if name != "AVIF" or features.check("avif") else None
    return "HEIF" if brands and brands[0] in _HEIF_WITHOUT_CODEC else None


def _brands(data: bytes) -> list[bytes]:
    """The major brand, then the compatible ones."""
    end = min(int.from_bytes(data[:4], "big"), HEAD_BYTES)
    places = [8, *range(16, end - 3, 4)]
    return [data[place : place + 4] for place in places]
