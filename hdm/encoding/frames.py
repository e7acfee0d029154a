"""How pictures of any size become latents of few shapes, and which file each goes to. Arithmetic only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Framing:
    """The full frame, its shorter side brought to the resolution.

    Args:
        resolution: the shorter side, in pixels.
        multiple: both sides are multiples of it, in pixels: the autoencoder's downscale times the model's patch.
        max_aspect: pictures longer than this are cut to it about their middle.
    """

    resolution: int
    multiple: int
    max_aspect: float

    def cut(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that is kept: (left, top, right, bottom), in its pixels."""
        kept_width, kept_height = min(width, height * self.max_aspect), min(height, width * self.max_aspect)
        left, top = (width - kept_width) / 2, (height - kept_height) / 2
        return left, top, left + kept_width, top + kept_height

    def sizes(self, widths: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Widths and heights of the framed pictures, in pixels.

        The longer side goes to the nearest multiple, so that nothing is cropped; at `max_aspect` to the one below it.
        """
        aspect = np.minimum(np.maximum(widths, heights) / np.minimum(widths, heights), self.max_aspect)
        steps = np.floor(aspect * self.resolution / self.multiple + 0.5)
        most = max(int(self.resolution * self.max_aspect + 1e-6) // self.multiple, self.resolution // self.multiple)
        longer = (np.minimum(steps, most) * self.multiple).astype(np.int64)
        return np.where(widths >= heights, longer, self.resolution), np.where(widths >= heights, self.resolution, longer)

    def enlarges(self, width: int, height: int) -> bool:
        """Whether a picture has fewer pixels than the frame."""
        return min(width, height) < self.resolution


@dataclass(frozen=True)
class PlannedFile:
    """Pictures of one shape for one file: `rows` of the table of pictures, in order."""

    width: int
    height: int
    number: int
    rows: np.ndarray


def plan_files(widths: np.ndarray, heights: np.ndarray, bytes_a_pixel: float, max_bytes: float) -> Iterator[PlannedFile]:
    """Group framed pictures by shape, in order of the pictures, and split each group into files.

    Args:
        widths, heights: of the framed pictures, (n,) in pixels.
        bytes_a_pixel: of a stored latent, for each pixel of its picture.
        max_bytes: upper size of a file; one picture at least.
    """
    shapes, members = np.unique(np.stack([heights, widths], 1), axis=0, return_inverse=True)
    for shape, (height, width) in enumerate(shapes.tolist()):
        rows = np.flatnonzero(members == shape)
        count = max(1, int(max_bytes // (height * width * bytes_a_pixel)))
        for number, start in enumerate(range(0, len(rows), count)):
            yield PlannedFile(width, height, number, rows[start : start + count])
