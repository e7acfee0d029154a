"""Fingerprints that tell whether two pictures show the same: a hash of the pixels, perceptual
hashes of several views, and small copies.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image
from scipy.fft import dct

SMALL_SIDE = 128  # pixels a side of the copy from which views are cut
GREY_SIDE = 32
COLOUR_SIDE = 8
FRAME_CONTRAST = 16  # grey levels within a border that counts as one colour
MAX_FRAME = 0.25  # of each side
LINES = 16  # looked at together

_LOWEST = dct(np.eye(GREY_SIDE), axis=0)[:8].astype(np.float32)  # (8, 32)

CENTRE_VIEWS = (1.0, 0.95, 0.9, 0.85, 0.8)
CORNER_VIEW = 0.9


def _views() -> np.ndarray:
    """(9, 4) left, top, right, bottom as shares: the whole, four crops of its centre, four of its
    corners.
    """
    boxes = []
    for share in CENTRE_VIEWS:
        margin = (1 - share) / 2
        boxes.append((margin, margin, 1 - margin, 1 - margin))
    rest = 1 - CORNER_VIEW
    for x, y in product((0, rest), (0, rest)):
        boxes.append((x, y, x + CORNER_VIEW, y + CORNER_VIEW))
    return np.array(boxes)


VIEWS = _views()
EVERYTHING = np.array([0.0, 0.0, 1.0, 1.0])

# The byte order is fixed, because tables are read on other machines.
RECORD = np.dtype(
    [
        ("views", "<u8", len(VIEWS)),  # hashes of VIEWS of the frame
        ("whole", "<u8"),  # of the whole picture, its border too
        ("mirrored", "<u8", 2),  # of the mirror images of frame and whole
        ("frame", "<f4", 4),  # left, top, right, bottom of what a border of one colour leaves
        ("grey", "u1", (GREY_SIDE, GREY_SIDE)),  # of the whole picture
        ("colour", "u1", (COLOUR_SIDE, COLOUR_SIDE, 2)),  # Cb and Cr, 128 where it is grey
    ]
)
"""One picture's perceptual fingerprint, as the tables hold it."""


@dataclass(frozen=True)
class Fingerprint:
    """`sha256` covers size and pixels; `record` holds the bytes of one RECORD."""

    sha256: str
    record: bytes


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """The fingerprint of an (H, W, 3) uint8 picture."""
    height, width, _ = pixels.shape
    # The same bytes in another shape are another picture.
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return Fingerprint(digest.hexdigest(), _record(pixels).tobytes())


def _record(pixels: np.ndarray) -> np.ndarray:
    frame = find_frame(pixels)
    # A box filter would give different copies of the same picture at 61 and at 64 pixels a side.
    small = Image.fromarray(pixels).resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BILINEAR)
    grey = small.convert("L")
    record = np.zeros((), RECORD)
    record["frame"] = frame
    record["grey"] = _small_copy(grey, EVERYTHING)
    views = [_small_copy(grey, box) for box in boxes_within(frame[None], np.arange(len(VIEWS)))]
    # Hash the mirror images here: `filter.duplicate_mirrored` is decided later, without the pixels.
    mirrored = [views[0][:, ::-1], record["grey"][:, ::-1]]
    hashes = perceptual_hashes(np.array([*views, record["grey"], *mirrored]))
    record["views"] = hashes[: len(VIEWS)]
    record["whole"] = hashes[len(VIEWS)]
    record["mirrored"] = hashes[-2:]
    colour = small.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX).convert("YCbCr")
    record["colour"] = np.asarray(colour)[..., 1:]
    return record


def boxes_within(frames: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Boxes of views in the whole picture: (P, 4) frames and (V,) indices into VIEWS → (max(P, V),
    4), where P = V or one of them is 1.
    """
    corner = frames[:, :2]
    size = frames[:, 2:] - corner
    boxes = VIEWS[views]
    return np.hstack([corner + boxes[:, :2] * size, corner + boxes[:, 2:] * size])


def _small_copy(grey: Image.Image, box: np.ndarray) -> np.ndarray:
    in_pixels = tuple((box * SMALL_SIDE).tolist())
    size = (GREY_SIDE, GREY_SIDE)
    return np.asarray(grey.resize(size, Image.Resampling.BOX, box=in_pixels))


def perceptual_hashes(views: np.ndarray) -> np.ndarray:
    """Perceptual hashes: which of the 8 × 8 lowest frequencies lie above their median, as
    ImageHash's `phash`, for many pictures at once.

    Args:
        views: (N, 32, 32) uint8.

    Returns:
        (N,) uint64.
    """
    low = (_LOWEST @ views.astype(np.float32) @ _LOWEST.T).reshape(-1, 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view("<u8")[:, 0]


def find_frame(pixels: np.ndarray) -> np.ndarray:
    """The part of a picture within its border of one colour.

    A border is made of rows or columns from one side inwards, at most a quarter of the picture, in
    which no channel varies by more than FRAME_CONTRAST levels. That allows for JPEG's unevenness,
    but a sky is no border.

    Returns:
        (4,) left, top, right, bottom as shares of width and height.
    """
    height, width, _ = pixels.shape
    top = _border(pixels)
    bottom = _border(pixels[::-1])
    across = pixels[top : height - bottom].transpose(1, 0, 2)
    left = _border(across)
    right = _border(across[::-1])
    return np.array(
        [left / width, top / height, 1 - right / width, 1 - bottom / height], np.float32
    )


def _border(lines: np.ndarray) -> int:
    """Number of leading lines of (L, M, 3) that together are of one colour."""
    most = int(len(lines) * MAX_FRAME)
    darkest = np.full(3, 255, np.uint8)
    lightest = np.zeros(3, np.uint8)
    # In most pictures the border ends within the first few lines, so the rest is not looked at.
    for start in range(0, most, LINES):
        some = lines[start : min(start + LINES, most)]
        low = np.minimum.accumulate(np.minimum(some.min(axis=1), darkest))
        high = np.maximum.accumulate(np.maximum(some.max(axis=1), lightest))
        uneven = (high - low).max(axis=1) > FRAME_CONTRAST
        if uneven.any():
            return start + int(uneven.argmax())
        darkest = low[-1]
        lightest = high[-1]
    return most
