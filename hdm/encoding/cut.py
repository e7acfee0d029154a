"""Cut frames out of one picture. Called in the processes that decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hdm.pictures.reading import BadImage, decode

if TYPE_CHECKING:
    from hdm.pictures.settings import ImageSettings

Box = tuple[float, float, float, float]
Size = tuple[int, int]


def cut_frames(
    data: bytes, settings: ImageSettings, *, size: Size, frames: Sequence[tuple[Box, Size]]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Decode a picture, cut and resize it.

    Args:
        data: the file.
        settings: how it is decoded.
        size: the width and height that it must have.
        frames: for each frame the box (left, top, right, bottom) to keep, in pixels, and the
            (width, height) to resize it to.

    Returns:
        No facts, and the frames (h, w, 3) uint8.

    Raises:
        BadImage: it cannot be decoded, is over a limit, or is of another size.
    """
    # The decoder returns upright sRGB with transparency on the matte, which is what the filter
    # measured.
    pixels = decode(data, settings).pixels
    height, width = pixels.shape[:2]
    # Frames were planned for the size that the filter measured, and a file holds one shape.
    if (width, height) != tuple(size):
        raise BadImage(
            "corrupt", f"it is {width} × {height}, and was measured as {size[0]} × {size[1]}"
        )
    image = Image.fromarray(pixels)
    resized = []
    for (left, top, right, bottom), (frame_width, frame_height) in frames:
        box = (left, top, right, bottom)
        frame_size = (frame_width, frame_height)
        # Cutting to an aspect ratio may begin and end within a pixel, which `box` supports.
        frame = image.resize(frame_size, Image.Resampling.LANCZOS, box=box)
        resized.append(np.asarray(frame))
    return {}, resized
