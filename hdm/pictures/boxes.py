"""Boxes of the ISO base media file format: HEIF, AVIF and JPEG 2000 state their colour in one."""

from __future__ import annotations

from collections.abc import Iterator

_MOST = 1000
"""Boxes of one level that are looked at."""


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box between two places; a box that reaches further
    ends there.
    """
    for _ in range(_MOST):
        if end - start < 8:
            return
        length = int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        content = start + 8
        # A length of 1 is followed by one of 64 bits; 0 means up to the end.
        if length == 1:
            length = int.from_bytes(data[content : content + 8], "big")
            content += 8
        past = end if length == 0 else min(start + length, end)
        # A length shorter than its own header is damage.
        if past < content:
            return
        yield kind, content, past
        start = past


def colour_boxes(data: bytes) -> list[bytes]:
    """The contents of the `colr` boxes of a HEIF, AVIF or JPEG 2000 file, in their order."""
    contents = []
    places = [(0, len(data))]
    while places:
        for kind, start, end in boxes(data, *places.pop()):
            if kind == b"meta":
                places.append((start + 4, end))  # behind version and flags
            elif kind in (b"iprp", b"ipco", b"jp2h"):
                places.append((start, end))
            elif kind == b"colr":
                contents.append(data[start:end])
    return contents
