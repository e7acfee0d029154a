"""Sizes of stages' outputs, by arithmetic. Those of latents, texts and weights are tested against
real files and agree to about a thousandth.

Small tables compress depending on their content; their figures are from a run of the demo.
"""

from __future__ import annotations

import math

from hdm.data.pages import group_rows
from hdm.keys import DIGITS

SHARD_IMAGES = 20_000  # assumed number of pictures of one shape in a file
PICTURE_BYTES = 300_000  # assumed for a downloaded picture: a million pixels at 2.4 bits each
ASPECT = 1.33  # assumed mean ratio of longer to shorter side
# Bytes for each picture (in a tar, of measures, of scores), caption and token.
TAR_BYTES = 840
MEASURE_BYTES = 260
SCORE_BYTES = 40
CAPTION_BYTES = 60
TOKEN_BYTES = 2

KEY_BYTES = 4 + DIGITS  # length and digits
SIZE_BYTES = 8  # two int32
GROUP_BYTES = 480  # four page headers, and four column chunks in the footer
FILE_BYTES = 900  # schema and metadata


def latent_bytes(channels: int, height: int, width: int) -> int:
    """Size of one raw latent in 16 bits."""
    return 2 * channels * height * width


def shard_bytes(num_rows: int, channels: int, height: int, width: int) -> int:
    """Approximate size of a latent shard, whose footer has integers of varying length."""
    row = latent_bytes(channels, height, width)
    groups = math.ceil(num_rows / group_rows(num_rows, row))
    return num_rows * (row + KEY_BYTES + SIZE_BYTES) + groups * GROUP_BYTES + FILE_BYTES


def latent_row_bytes(
    channels: int, height: int, width: int, shard_images: int = SHARD_IMAGES
) -> float:
    """Size of a latent with its columns and its share of headers and footers."""
    return shard_bytes(shard_images, channels, height, width) / shard_images


def text_bytes(tokens: int, width: int) -> int:
    """Size of one caption's text embedding in 16 bits, with its key, index and lengths."""
    return 2 * tokens * width + 4 + KEY_BYTES + 2 * 4


def phase_bytes(num_parameters: int, snapshots: int = 0) -> int:
    """Size of a training phase's output: weights, their average, and snapshots of power-function
    averages, in float32.
    """
    return (2 + snapshots) * 4 * num_parameters


def checkpoint_bytes(num_parameters: int, optimizer_bytes: int, kept: int) -> int:
    """Size of the checkpoints on disk while a phase runs: `kept` of them, and one in progress."""
    return (kept + 1) * (phase_bytes(num_parameters) + optimizer_bytes)
