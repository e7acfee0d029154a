"""Measure one picture from its pixels alone. Called in the processes that decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hdm.curation.fingerprints import fingerprint
from hdm.curation.sharpness import noise, sharpness, to_grey
from hdm.pictures.reading import decode, reduced

if TYPE_CHECKING:
    from hdm.pictures.settings import ImageSettings

EMBED_SIDE_PX = 768
"""No model looks at more pixels, so larger pictures are reduced before they wait for one."""


def look(
    data: bytes,
    settings: ImageSettings,
    *,
    measured: bool = True,
    reduced_to_px: int | None = None,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Measure a picture, show it to models, or both.

    Args:
        data: the file.
        settings: how it is decoded.
        measured: whether to measure it.
        reduced_to_px: return the pixels too, reduced by `hdm.pictures.reading.reduced`; None: do
            not.

    Returns:
        Columns of MEASURES, with bytes as hexadecimal digits, and the pixels, each where asked for.

    Raises:
        BadImage: it cannot be decoded, or is over a limit.
    """
    pixels = decode(data, settings).pixels
    row = _measure(pixels) if measured else {}
    return row, [] if reduced_to_px is None else [reduced(pixels, reduced_to_px)]


def _measure(pixels: np.ndarray) -> dict[str, Any]:
    grey = to_grey(pixels)
    steepness = sharpness(grey)
    deviation = noise(grey)
    del grey  # of a large picture half a gigabyte
    print_ = fingerprint(pixels)
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "sharpness": steepness,
        "noise": deviation,
        "sha256": print_.sha256,
        "fingerprint": print_.record.hex(),
    }
