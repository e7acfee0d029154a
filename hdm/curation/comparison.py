"""Decide whether two pictures with similar hashes show the same, by aligning their small copies and
comparing them place by place.

This test is independent of the hashes: they hold the signs of the lowest frequencies, whereas this
compares the gradients in each of 16 places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from scipy.ndimage import affine_transform

from hdm.curation.fingerprints import GREY_SIDE

# Samples along a side of the aligned copies. The outermost ones, into which a border leaks, are not
# compared.
SAMPLES = 26
PLACES = 4  # along a side, each of 6 × 6 samples
GREY_PLACES = 16  # along a side, when drawings are compared
# Root mean square of gradients, in grey levels, below which a place shows nothing. Added to both
# sides' energy, it keeps what two smooth places have in common, a slope and the noise, from
# counting as agreement.
FLAT = 1.0
MIN_PLACES = 4  # with fewer places that show something there is nothing to compare
COLOURLESS = 4.0  # root mean square of Cb and Cr about grey
MIN_COLOUR_COSINE = 0.5
HOPELESS = 0.45  # no move makes up for a correlation this far below the threshold
# Share of the places that counts, the best ones. A watermark or the rest of a border may hide the
# others.
COUNTED = 0.875
TURNS = (-2, -1, 1, 2)  # degrees
SHIFTS = 0.02  # share of the box, each way
FINE_SHIFTS = 0.01
SCALES = (-0.025, 0.025)  # share of the box, at each side

# Shapes below: P pairs of pictures.
_Move = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Small copies (P, 32, 32) and boxes (P, 4) to others."""


def correlate(
    first: np.ndarray,
    first_boxes: np.ndarray,
    second: np.ndarray,
    second_boxes: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """How well the gradients of two pictures agree within their boxes.

    This is the correlation of their gradients, averaged over the best 14 of 4 × 4 places; it does
    not depend on brightness and contrast. Where it misses the threshold by less than HOPELESS, one
    picture is turned by up to 2°, shifted by up to 3 % and scaled by 5 % against the other, and the
    best alignment counts.

    Args:
        first, second: (P,) RECORD.
        first_boxes, second_boxes: (P, 4) left, top, right, bottom as shares of the whole picture.
        threshold: correlation from which two pictures count as the same.

    Returns:
        (P,) float32 in [-1, 1]; -1 where too little is shown to compare.
    """
    mine = _gradients(_resampled(first["grey"], first_boxes))
    grey = second["grey"].astype(np.float32)
    best = _agreement(mine, _gradients(_resampled(grey, second_boxes)))
    # The search is costly: only pairs whose verdict it can change take part.
    near = np.flatnonzero((best < threshold) & (best > threshold - HOPELESS))
    search = _Search(mine[near], grey[near], second_boxes[near], best[near])
    search.take_best([_turn(degrees) for degrees in TURNS])
    search.take_best(_shifts(SHIFTS))
    search.take_best([_scale(share) for share in SCALES])
    search.take_best(_shifts(FINE_SHIFTS))
    best[near] = search.best
    return best


class _Search:
    """Greedy alignment of second pictures with first ones: one kind of move after the other, each
    starting from the best alignment so far.

    Args:
        mine: (P, 16, 72), gradients of the first pictures.
        grey, boxes: (P, 32, 32) and (P, 4), the second ones.
        best: (P,), their agreement before any move.
    """

    def __init__(
        self, mine: np.ndarray, grey: np.ndarray, boxes: np.ndarray, best: np.ndarray
    ) -> None:
        self.mine = mine
        self.grey = grey
        self.boxes = boxes
        self.best = best

    def take_best(self, moves: Iterable[_Move]) -> None:
        """For each pair make the move after which it agrees best, or none."""
        grey = self.grey
        boxes = self.boxes
        for move in moves:
            moved, moved_boxes = move(grey, boxes)
            agreement = _agreement(self.mine, _gradients(_resampled(moved, moved_boxes)))
            better = agreement > self.best
            self.best = np.maximum(self.best, agreement)
            self.grey = np.where(better[:, None, None], moved, self.grey)
            self.boxes = np.where(better[:, None], moved_boxes, self.boxes)


def _turn(degrees: float) -> _Move:
    def move(grey: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turned = grey.reshape(-1, GREY_SIDE**2) @ _turning(degrees)
        return turned.reshape(grey.shape), boxes

    return move


def _shifts(share: float) -> list[_Move]:
    """To the eight neighbours."""
    steps = (-share, 0.0, share)
    return [_shift(x, y) for x in steps for y in steps if x or y]


def _shift(x: float, y: float) -> _Move:
    def move(grey: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = boxes[:, 2:] - boxes[:, :2]
        return grey, boxes + np.tile(size, 2) * np.array([x, y, x, y])

    return move


def _scale(share: float) -> _Move:
    def move(grey: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = boxes[:, 2:] - boxes[:, :2]
        return grey, boxes + np.tile(size, 2) * np.array([-share, -share, share, share])

    return move


@cache
def _turning(degrees: float) -> np.ndarray:
    """(1024, 1024) matrix that turns a flattened small copy about its centre."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (GREY_SIDE - 1) / 2)
    # Turning is linear: its matrix is what becomes of each single pixel.
    pixels = np.eye(GREY_SIDE**2, dtype=np.float32).reshape(-1, GREY_SIDE, GREY_SIDE)
    offset = centre - turn @ centre
    turned = [affine_transform(pixel, turn, offset, order=1, mode="nearest") for pixel in pixels]
    return np.array(turned).reshape(GREY_SIDE**2, -1)


def colours_agree(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether two pictures have the same colours, whatever their saturation. A grey picture agrees
    with any.

    Args:
        first, second: (P,) RECORD.

    Returns:
        (P,) bool.
    """
    mine = _inner_colours(first)
    theirs = _inner_colours(second)
    cosine = (mine * theirs).sum(1) / np.maximum(_norm(mine) * _norm(theirs), 1e-6)
    least = np.minimum(_norm(mine), _norm(theirs)) / np.sqrt(mine.shape[1])
    agree: np.ndarray = (least < COLOURLESS) | (cosine >= MIN_COLOUR_COSINE)
    return agree


def _inner_colours(side: np.ndarray) -> np.ndarray:
    """(P, values) float32, without the outermost places, into which a border leaks."""
    return side["colour"][:, 1:-1, 1:-1].reshape(len(side), -1).astype(np.float32) - 128


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The largest difference of two whole pictures at any place, without that of their overall
    brightness.

    Args:
        first, second: (P,) RECORD.

    Returns:
        (P,) float32, levels: of the grey ones' means in 16 × 16 places, or of Cb's and Cr's in 8 ×
        8.
    """
    grey = first["grey"].astype(np.float32) - second["grey"]
    grey -= np.median(grey, axis=(1, 2), keepdims=True)
    side = GREY_SIDE // GREY_PLACES
    means = grey.reshape(len(grey), GREY_PLACES, side, GREY_PLACES, side).mean(axis=(2, 4))
    colour = first["colour"].astype(np.float32) - second["colour"]
    of_grey = np.abs(means).max(axis=(1, 2))
    of_colour = np.abs(colour).max(axis=(1, 2, 3))
    larger: np.ndarray = np.maximum(of_grey, of_colour)
    return larger


def mirror(records: np.ndarray) -> np.ndarray:
    """Fingerprints of the mirror images. Only the fields that this module reads are mirrored."""
    turned = records.copy()
    turned["grey"] = records["grey"][:, :, ::-1]
    turned["colour"] = records["colour"][:, :, ::-1]
    turned["frame"][:, [0, 2]] = 1 - records["frame"][:, [2, 0]]
    return turned


def _norm(values: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.sqrt((values**2).sum(axis=1))
    return norms


def _resampled(grey: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Boxes (P, 4) cut from small copies (P, 32, 32) and resampled to (P, 26, 26) float32 by a
    triangle filter at least one pixel wide.
    """
    across = _weights(boxes[:, 0], boxes[:, 2])
    down = _weights(boxes[:, 1], boxes[:, 3])
    samples: np.ndarray = down @ grey.astype(np.float32) @ across.transpose(0, 2, 1)
    return samples


def _weights(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(P, 26, 32): the weight of each pixel in each sample."""
    step = (high - low) / SAMPLES * GREY_SIDE
    centres = low[:, None] * GREY_SIDE + (np.arange(SAMPLES) + 0.5) * step[:, None] - 0.5
    reach = np.maximum(step, 1)[:, None, None]
    shares = 1 - np.abs(np.arange(GREY_SIDE) - centres[:, :, None]) / reach
    shares = np.maximum(shares, 0).astype(np.float32)
    weights: np.ndarray = shares / np.maximum(shares.sum(axis=2, keepdims=True), 1e-6)
    return weights


def _gradients(grey: np.ndarray) -> np.ndarray:
    """(P, 26, 26) → (P, 16, 72): horizontal and vertical gradients by place."""
    inner = grey[:, 1:, 1:]
    corner = inner[:, :-1, :-1]
    both = np.stack([inner[:, :-1, 1:] - corner, inner[:, 1:, :-1] - corner], axis=1)
    side = both.shape[2] // PLACES
    places = both.reshape(len(grey), 2, PLACES, side, PLACES, side).transpose(0, 2, 4, 1, 3, 5)
    return places.reshape(len(grey), PLACES**2, 2 * side**2)


def _agreement(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Mean correlation over the best of the places where at least one picture shows something."""
    energy = (mine**2).sum(axis=2), (theirs**2).sum(axis=2)
    floor = FLAT**2 * mine.shape[2]
    correlation = (mine * theirs).sum(axis=2) / np.sqrt((energy[0] + floor) * (energy[1] + floor))
    shown = np.maximum(*energy) > floor
    num_shown = shown.sum(axis=1)
    best_first = -np.sort(np.where(shown, -correlation, np.inf), axis=1)
    num_counted = np.maximum(np.ceil(num_shown * COUNTED), 1)
    counted = np.arange(best_first.shape[1]) < num_counted[:, None]
    mean = np.where(counted, best_first, 0).sum(axis=1) / num_counted
    # -1: too little is shown to call them the same.
    return np.where(num_shown >= MIN_PLACES, mean, -1).astype(np.float32)
