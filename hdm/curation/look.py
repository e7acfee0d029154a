"""What the pixels of one picture alone say; called in the processes that decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hdm.curation.fingerprints import fingerprint
from hdm.curation.quality import noise, sharpness, to_grey
from hdm.data.images import decode

if TYPE_CHECKING:
    from hdm.data.settings import ImageSettings

EMBED_SIDE_PX = 768
"""No model looks closer: larger pictures are reduced before they wait for one."""


def look(data: bytes, settings: ImageSettings) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Measure a picture.

    Args:
        data: the file.
        settings: how it is decoded.

    Returns:
        Columns of MEASURES, bytes as hexadecimal digits; and no array.

    Raises:
        BadImage: it cannot be decoded, or is over a limit.
    """
    pixels = decode(data, settings).pixels
    grey = to_grey(pixels)
    steepness, deviation = sharpness(grey), noise(grey)
    del grey  # of a large picture half a gigabyte
    found = fingerprint(pixels)
    row = {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "sharpness": steepness,
        "noise": deviation,
        "sha256": found.sha256,
        "fingerprint": found.record.hex(),
    }
    return row, []
