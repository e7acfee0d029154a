"""How sharp and how noisy a picture is, from its pixels alone."""

from __future__ import annotations

import numpy as np
from PIL import Image

SHARPNESS_SIDE_PX = 256
NOISE_SIDE_PX = 1024
NOISE_BLOCK_PX = 16
MIN_CONTRAST = 16.0  # grey levels; below it there are no edges to judge, only rounding and noise
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as JPEG has it


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 → (H, W) float32 in [0, 255]."""
    # Summed one by one: a matrix product may round differently from machine to machine.
    grey = pixels[..., 0].astype(np.float32)
    grey *= _LUMA[0]
    part = np.empty_like(grey)  # used twice: of a large picture every such array is half a gigabyte
    for channel in (1, 2):
        np.multiply(pixels[..., channel], _LUMA[channel], out=part)
        grey += part
    return grey


def sharpness(grey: np.ndarray) -> float:
    """Steepness of the steepest edges, independent of contrast and of how much of the picture is
    plain.

    The 99.5th percentile of the Laplacian's magnitude divided by the contrast (99.5th less 0.5th
    percentile of the grey levels), with the shorter side reduced to at most 256 px. The usual
    variance of the Laplacian depends on contrast and on the number of edges instead: by it a yellow
    disc on a pale ground is less sharp than a blurred black star.

    Args:
        grey: (H, W) float32 in [0, 255].

    Returns:
        About 1 for steps from one pixel to the next, 0.24 / s² for edges blurred by a Gaussian of s
        pixels (s ≥ 1), 0 for one colour.
    """
    # Reduced first, so that the same picture in a larger file does not count as blurred.
    small = _shorter_side_at_most(grey, SHARPNESS_SIDE_PX)
    if min(small.shape) < 3:
        return 0.0
    laplacian = (
        small[1:-1, :-2]
        + small[1:-1, 2:]
        + small[:-2, 1:-1]
        + small[2:, 1:-1]
        - 4 * small[1:-1, 1:-1]
    )
    darkest, lightest = np.percentile(small, (0.5, 99.5))
    return float(np.percentile(np.abs(laplacian), 99.5) / max(lightest - darkest, MIN_CONTRAST))


def noise(grey: np.ndarray) -> float:
    """The standard deviation of the pixel noise, by Immerkær's operator (Fast Noise Variance
    Estimation, CVIU 64, 1996, eq. 3).

    The operator, the difference of two Laplacians, responds to white noise with 6σ and to planes
    with 0. Immerkær averages its magnitude over the picture, where edges and texture dominate; here
    the smoothest tenth of 16 × 16 blocks counts.

    Args:
        grey: (H, W) float32 in [0, 255]; only the middle 1024 × 1024 pixels are used.

    Returns:
        Standard deviation in grey levels. Noise of 8 levels in each of red, green and blue gives 5;
        texture without any smooth place counts as noise.
    """
    height, width = grey.shape
    if min(height, width) < 3:
        return 0.0
    top = max(height - NOISE_SIDE_PX, 0) // 2
    left = max(width - NOISE_SIDE_PX, 0) // 2
    middle = grey[top : top + NOISE_SIDE_PX, left : left + NOISE_SIDE_PX]
    across = middle[:, :-2] - 2 * middle[:, 1:-1] + middle[:, 2:]
    answer = np.abs(across[:-2] - 2 * across[1:-1] + across[2:])
    # The mean magnitude of normal noise is √(2/π) of its standard deviation.
    return float(np.percentile(_block_means(answer), 10) * np.sqrt(np.pi / 2) / 6)


def _block_means(values: np.ndarray) -> np.ndarray:
    """Means of the whole blocks; a side too short for one is one block."""
    height, width = values.shape
    tall = min(NOISE_BLOCK_PX, height)
    wide = min(NOISE_BLOCK_PX, width)
    rows = height // tall
    columns = width // wide
    blocks = values[: rows * tall, : columns * wide].reshape(rows, tall, columns, wide)
    means: np.ndarray = blocks.mean((1, 3))
    return means


def _shorter_side_at_most(grey: np.ndarray, side: int) -> np.ndarray:
    height, width = grey.shape
    if min(height, width) <= side:
        return grey
    scale = side / min(height, width)
    size = (max(round(width * scale), side), max(round(height * scale), side))
    # Not by fromarray, which makes bytes of the array first: another such array.
    picture = Image.frombuffer("F", (width, height), grey, "raw", "F;32NF", 0, 1)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
