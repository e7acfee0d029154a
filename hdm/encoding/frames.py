"""Plan how pictures of any size become latents of few shapes, and which file each goes to.

Arithmetic only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Framing:
    """The full frame, with its shorter side resized to the resolution.

    Args:
        resolution: the shorter side, in pixels.
        multiple: both sides are multiples of it, in pixels: the autoencoder's downscale times the
            model's patch.
        max_aspect: pictures with a larger aspect ratio are cropped to it about their middle.
    """

    resolution: int
    multiple: int
    max_aspect: float

    def cut(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that is kept: (left, top, right, bottom), in its pixels."""
        # At least one of the two is the picture's whole side.
        kept_width = min(width, height * self.max_aspect)
        kept_height = min(height, width * self.max_aspect)
        left = (width - kept_width) / 2
        top = (height - kept_height) / 2
        return left, top, left + kept_width, top + kept_height

    def sizes(self, widths: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Widths and heights of the framed pictures, in pixels.

        The longer side is stretched to the nearest multiple, so that nothing is cropped; at
        `max_aspect` to the multiple below.
        """
        aspect = np.minimum(
            np.maximum(widths, heights) / np.minimum(widths, heights), self.max_aspect
        )
        # Halves are rounded up; np.rint would round them to the nearest even number.
        steps = np.floor(aspect * self.resolution / self.multiple + 0.5)
        # Without 1e-6, a product just below a whole multiple would lose one step.
        most = max(
            int(self.resolution * self.max_aspect + 1e-6) // self.multiple,
            self.resolution // self.multiple,
        )
        longer = (np.minimum(steps, most) * self.multiple).astype(np.int64)
        is_wide = widths >= heights
        framed_widths = np.where(is_wide, longer, self.resolution)
        framed_heights = np.where(is_wide, self.resolution, longer)
        return framed_widths, framed_heights

    def size(self, picture: Mapping[str, int]) -> tuple[int, int]:
        """Width and height of one framed picture, in pixels, from its `width` and `height`."""
        width, height = self.sizes(np.array([picture["width"]]), np.array([picture["height"]]))
        return int(width[0]), int(height[0])

    def enlarges(self, width: int, height: int) -> bool:
        """Whether a picture has fewer pixels than the frame."""
        return min(width, height) < self.resolution


@dataclass(frozen=True)
class PlannedFile:
    """Pictures of one shape for one file: `rows` of the table of pictures, in order; all of one
    group.
    """

    width: int
    height: int
    number: int
    rows: np.ndarray
    group: int = 0


def plan_files(
    widths: np.ndarray,
    heights: np.ndarray,
    bytes_a_pixel: float,
    max_bytes: float,
    groups: np.ndarray | None = None,
) -> Iterator[PlannedFile]:
    """Divide framed pictures by shape, in order of the pictures, and split each shape into files.

    Args:
        widths, heights: of the framed pictures, (n,) in pixels.
        bytes_a_pixel: of a stored latent, for each pixel of its picture.
        max_bytes: upper size of a file, which holds at least one picture.
        groups: of the pictures, (n,) integers from 0 on; -1: in no file. A shape's files are
            numbered group by group, so without the last groups the other files stay what they are.
            None: all are of one.
    """
    if groups is None:
        groups = np.zeros(len(widths), np.int8)
    # np.unique sorts, so shapes come in the same order whatever the order of the pictures.
    shapes, members = np.unique(np.stack([heights, widths], 1), axis=0, return_inverse=True)
    for shape, (height, width) in enumerate(shapes.tolist()):
        of_shape = np.flatnonzero(members == shape)
        of_group = groups[of_shape]
        count = max(1, int(max_bytes // (height * width * bytes_a_pixel)))
        number = 0
        for group in range(of_group.max() + 1):
            rows = of_shape[of_group == group]
            for start in range(0, len(rows), count):
                yield PlannedFile(width, height, number, rows[start : start + count], group)
                number += 1


def plan_bands(
    plans: Sequence[Sequence[PlannedFile]], num_pictures: int
) -> list[list[tuple[int, PlannedFile]]]:
    """Group the files of several resolutions so that most pictures are decoded only once.

    Each shape of the first plan, or each group in it, starts a band. Every shape of the other plans
    joins the band that has most of its pictures. Two resolutions divide pictures into shapes at
    different aspect ratios, so a picture near a boundary may be in two bands and is then decoded
    twice. The bands of a single plan are its shapes, group by group.

    Args:
        plans: `plan_files` of each resolution, all of the same pictures. The lowest resolution
            comes first: it has the fewest shapes, so that few files of a band are open at once.
        num_pictures: number of pictures in each plan.

    Returns:
        For each band its files as (index of the plan, file), those of one shape in order.
    """
    bands: list[list[tuple[int, PlannedFile]]] = []
    band_of = np.zeros(num_pictures, np.int64)
    for number, plan in enumerate(plans):
        for files in _by_shape(plan):
            rows = np.concatenate([file.rows for file in files])
            if number == 0:
                band = len(bands)
                bands.append([])
                band_of[rows] = band
            else:
                # The shape joins the band of the lowest resolution that has most of its pictures.
                band = int(np.bincount(band_of[rows]).argmax())
            bands[band] += [(number, file) for file in files]
    return bands


def _by_shape(plan: Sequence[PlannedFile]) -> list[list[PlannedFile]]:
    shapes: dict[tuple[int, int, int], list[PlannedFile]] = {}
    for file in plan:
        shapes.setdefault((file.height, file.width, file.group), []).append(file)
    return list(shapes.values())


def reading_order(files: Sequence[PlannedFile]) -> Iterator[tuple[int, list[int]]]:
    """Yield every row of the files in order, with the indices of the files that contain it."""
    if not files:
        return
    rows = np.concatenate([file.rows for file in files])
    owners = np.repeat(np.arange(len(files)), [len(file.rows) for file in files])
    # A stable sort keeps the files of one picture in the order in which they were given.
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    owners = owners[order]
    # A row that is in several files occurs several times: each run of equal rows is one picture.
    for start, end in pairwise([*np.flatnonzero(np.diff(rows, prepend=-1)).tolist(), len(rows)]):
        yield int(rows[start]), owners[start:end].tolist()
