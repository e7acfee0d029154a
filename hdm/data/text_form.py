"""The storage format of text embeddings: 16 bits, or 8 bits with a scale for each token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCALE_BYTES = 4  # float32


@dataclass(frozen=True)
class TextForm:
    """The bytes of one token's embedding.

    Args:
        width: of an embedding.
        dtype: "float16"; or "int8": integers from -127 to 127, followed by the token's scale in
            float32, by which they are multiplied.
    """

    width: int
    dtype: str

    @property
    def token_bytes(self) -> int:
        return 2 * self.width if self.dtype == "float16" else self.width + SCALE_BYTES

    def pack(self, embedding: np.ndarray) -> np.ndarray:
        """Pack embeddings (T, width) float32 into (T, token_bytes) uint8. Values too large for 16
        bits become infinite.
        """
        if self.dtype == "float16":
            with np.errstate(over="ignore"):
                return embedding.astype("<f2").view(np.uint8)
        # With a scale for each token, 8 bits cost 0.75 % of a channel's standard deviation
        # (bench/RESULTS.md).
        scale = np.abs(embedding).max(axis=1, keepdims=True).astype("<f4") / 127
        # The scale of a token of zeros is 0.
        integers = np.rint(embedding / np.where(scale > 0, scale, 1)).astype(np.int8)
        return np.concatenate([integers.view(np.uint8), scale.view(np.uint8)], axis=1)

    def unpack(self, stored: np.ndarray) -> np.ndarray:
        """The inverse up to rounding: (…, token_bytes) uint8 to (…, width) float16; zeros give
        zeros.
        """
        if self.dtype == "float16":
            return stored.view("<f2")
        integers = stored[..., : self.width].view(np.int8)
        # numpy changes the item size of contiguous arrays only.
        scale = np.ascontiguousarray(stored[..., self.width :]).view("<f4")
        values: np.ndarray = integers * scale
        return values.astype(np.float16)
