"""What says whether two pictures are one: a hash of the pixels, perceptual hashes, a thumbnail."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image, ImageOps

HASH_SIDE = 16
HASH_BITS = HASH_SIDE * HASH_SIDE
THUMBNAIL_SIDE = 8


@dataclass(frozen=True)
class Fingerprint:
    """`sha256` is of size and pixels; the perceptual hashes, of the picture and of its mirror image, have HASH_BITS bits each;
    `thumbnail` is 8 × 8 × 3 bytes."""

    sha256: str
    perceptual_hash: bytes
    mirrored_hash: bytes
    thumbnail: bytes


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """The fingerprint of an (H, W, 3) uint8 picture."""
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    picture = Image.fromarray(pixels)
    thumbnail = picture.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return Fingerprint(
        digest.hexdigest(), _hash(picture), _hash(ImageOps.mirror(picture)), thumbnail.tobytes()
    )


def _hash(picture: Image.Image) -> bytes:
    return np.packbits(imagehash.phash(picture, hash_size=HASH_SIDE).hash).tobytes()
