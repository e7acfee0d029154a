"""How pictures of any size become latents of few shapes, and which file each goes to. Arithmetic
only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Framing:
    """The full frame, its shorter side brought to the resolution.

    Args:
        resolution: the shorter side, in pixels.
        multiple: both sides are multiples of it, in pixels: the autoencoder's downscale times the
            model's patch.
        max_aspect: pictures longer than this are cut to it about their middle.
    """

    resolution: int
    multiple: int
    max_aspect: float

    def cut(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that is kept: (left, top, right, bottom), in its pixels."""
        kept_width = min(width, height * self.max_aspect)
        kept_height = min(height, width * self.max_aspect)
        left = (width - kept_width) / 2
        top = (height - kept_height) / 2
        return left, top, left + kept_width, top + kept_height

    def sizes(self, widths: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Widths and heights of the framed pictures, in pixels.

        The longer side goes to the nearest multiple, so that nothing is cropped; at `max_aspect` to
        the one below it.
        """
        aspect = np.minimum(
            np.maximum(widths, heights) / np.minimum(widths, heights), self.max_aspect
        )
        steps = np.floor(aspect * self.resolution / self.multiple + 0.5)
        most = max(
            int(self.resolution * self.max_aspect + 1e-6) // self.multiple,
            self.resolution // self.multiple,
        )
        longer = (np.minimum(steps, most) * self.multiple).astype(np.int64)
        return np.where(widths >= heights, longer, self.resolution), np.where(
            widths >= heights, self.resolution, longer
        )

    def size(self, picture: Mapping[str, int]) -> tuple[int, int]:
        """Width and height of one framed picture, in pixels, from its `width` and `height`."""
        width, height = self.sizes(np.array([picture["width"]]), np.array([picture["height"]]))
        return int(width[0]), int(height[0])

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


def plan_files(
    widths: np.ndarray, heights: np.ndarray, bytes_a_pixel: float, max_bytes: float
) -> Iterator[PlannedFile]:
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


def bands(
    plans: Sequence[Sequence[PlannedFile]], num_pictures: int
) -> list[list[tuple[int, PlannedFile]]]:
    """Which files of several resolutions are made together, so that most pictures are decoded once.

    A band is a shape of the first plan with the shapes of the others that most of whose pictures
    have it. Shapes of two resolutions part pictures at different aspects, so a picture near such a
    place is in two bands, and decoded twice. One plan alone gives its shapes.

    Args:
        plans: of each resolution, as `plan_files` gives them, all of the same pictures; the lowest
            resolution first: it has the fewest shapes, and so a band few files that are open at
            once.
        num_pictures: that were planned.

    Returns:
        For each band its files as (number of the plan, file), those of one shape in order.
    """
    found: list[list[tuple[int, PlannedFile]]] = []
    band_of = np.zeros(num_pictures, np.int64)
    for number, plan in enumerate(plans):
        for files in _by_shape(plan):
            if number == 0:
                for file in files:
                    band_of[file.rows] = len(found)
                found.append([])
                band = len(found) - 1
            else:
                band = int(
                    np.bincount(band_of[np.concatenate([file.rows for file in files])]).argmax()
                )
            found[band] += [(number, file) for file in files]
    return found


def _by_shape(plan: Sequence[PlannedFile]) -> list[list[PlannedFile]]:
    shapes: dict[tuple[int, int], list[PlannedFile]] = {}
    for file in plan:
        shapes.setdefault((file.height, file.width), []).append(file)
    return list(shapes.values())


def reading_order(files: Sequence[PlannedFile]) -> Iterator[tuple[int, list[int]]]:
    """Every row that is in one of the files, in order, with the places in `files` of those that it
    is in.
    """
    if not files:
        return
    rows = np.concatenate([file.rows for file in files])
    owners = np.repeat(np.arange(len(files)), [len(file.rows) for file in files])
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    owners = owners[order]
    for start, end in pairwise([*np.flatnonzero(np.diff(rows, prepend=-1)).tolist(), len(rows)]):
        yield int(rows[start]), owners[start:end].tolist()
