"""Bytes of what stages write, by arithmetic. Latents, texts and weights are held against real files
to a thousandth or so.

The small tables compress by what is in them: their figures are those of a run of the demo.
"""

from __future__ import annotations

import math

from hdm.data.pages import group_rows
from hdm.keys import DIGITS

SHARD_IMAGES = 20_000  # of one shape in a file, where nothing is known
PICTURE_BYTES = 300_000
"""Assumed, of a picture as downloaded: a million pixels at 2.4 bits each."""
ASPECT = 1.33
"""Assumed: how many times as long as short a picture is, on average."""
TAR_BYTES = 840
MEASURE_BYTES = 260
SCORE_BYTES = 40
CAPTION_BYTES = 60
TOKEN_BYTES = 2

KEY_BYTES, SIZE_BYTES = 4 + DIGITS, 8  # digits after their length; two int32
GROUP_BYTES = 480  # four page headers, and four column chunks in the footer
FILE_BYTES = 900  # schema and metadata


def latent_bytes(channels: int, height: int, width: int) -> int:
    """Of one raw latent in 16 bits."""
    return 2 * channels * height * width


def shard_bytes(num_rows: int, channels: int, height: int, width: int) -> int:
    """Of a latent shard: about, since integers in its footer take as many bytes as they need."""
    row = latent_bytes(channels, height, width)
    groups = math.ceil(num_rows / group_rows(num_rows, row))
    return num_rows * (row + KEY_BYTES + SIZE_BYTES) + groups * GROUP_BYTES + FILE_BYTES


def latent_row_bytes(
    channels: int, height: int, width: int, shard_images: int = SHARD_IMAGES
) -> float:
    """Of a latent and its columns, its share of headers and footers with them."""
    return shard_bytes(shard_images, channels, height, width) / shard_images


def text_bytes(tokens: int, width: int) -> int:
    """Of one caption's text embedding in 16 bits, with its key, index and lengths."""
    return 2 * tokens * width + 4 + KEY_BYTES + 2 * 4


def phase_bytes(num_parameters: int, snapshots: int = 0) -> int:
    """What a training phase leaves: weights, their average, and snapshots of power-function
    averages, in float32.
    """
    return (2 + snapshots) * 4 * num_parameters


def checkpoint_bytes(num_parameters: int, optimizer_bytes: int, kept: int) -> int:
    """Of the checkpoints that lie on the disk while a phase runs: `kept`, and one that is being
    written.
    """
    return (kept + 1) * (phase_bytes(num_parameters) + optimizer_bytes)
