"""Generated pictures as files: sheets of many, PNG with a description inside."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hdm.errors import ConfigError, InputError
from hdm.values import multiples_beside, size_of

FONT_PX = 11
LINE_PX = 13
NAME_LINES = 3
MARGIN_PX = 4
"""Of the names below pictures."""


def read_size(text: str, where: str) -> tuple[int, int]:
    """Width and height in pixels of a size like "1024x768".

    Raises:
        ConfigError: it is not one; `where` it was written is named.
    """
    try:
        return size_of(text)
    except ValueError as error:
        raise ConfigError(f"{where} = {text!r}: {error}") from error


def check_sides(width: int, height: int, unit: int, where: str | None = None) -> None:
    """Raise an InputError where a picture cannot be cut into a model's patches of `unit` pixels;
    the nearest sizes are named.
    """
    if width % unit or height % unit or width < unit or height < unit:
        widths = multiples_beside(width, unit) if width % unit else (width,)
        heights = multiples_beside(height, unit) if height % unit else (height,)
        smaller, larger = f"{widths[0]}x{heights[0]}", f"{widths[-1]}x{heights[-1]}"
        near = dict.fromkeys((smaller, larger))  # once, where both are the same
        raise InputError(
            f"{width}x{height} px cannot be cut into this model's patches of {unit} px",
            where=where,
            do=f"take {' or '.join(near)}",
        )


def sheet(pictures: Sequence[np.ndarray], columns: int, gap_px: int = 0) -> np.ndarray:
    """Pictures of one size side by side in rows, on white."""
    height, width = pictures[0].shape[:2]
    columns = min(len(pictures), columns)
    rows = -(-len(pictures) // columns)
    down = height + gap_px
    right = width + gap_px
    canvas = np.full((rows * down - gap_px, columns * right - gap_px, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top = place // columns * down
        left = place % columns * right
        canvas[top : top + height, left : left + width] = picture
    return canvas


def named(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 above a text in up to three lines, on white."""
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + NAME_LINES * LINE_PX), "white")
    canvas.paste(Image.fromarray(picture))
    font = ImageFont.load_default(FONT_PX)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        # A word that is wider than the picture still gets a line.
        if lines[-1] and font.getlength(longer) > width - 2 * MARGIN_PX:
            lines.append(word)
        else:
            lines[-1] = longer
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines[:NAME_LINES]):
        left = max(0, width - font.getlength(line)) / 2
        draw.text((left, height + number * LINE_PX), line, "black", font)
    return np.asarray(canvas)


def png(pixels: np.ndarray, texts: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file of a picture (H, W, 3) uint8, with `texts` in its text chunks: strings as they
    are, other values as JSON.
    """
    info = PngInfo()
    for key, value in (texts or {}).items():
        # Pillow writes text beyond Latin-1 as iTXt, in UTF-8.
        info.add_text(
            key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
