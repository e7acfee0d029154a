"""Decide whether two pictures with similar hashes show the same, by aligning their small copies and
comparing them place by place.

This test is independent of the hashes: they hold the signs of the lowest frequencies, whereas this
compares the gradients in each of 16 places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import affine_transform
from scipy.sparse import csr_array

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
HOPELESS = 0.45  # below the threshold: no move is assumed to make up for that much
# Share of the places that counts, the best ones. A watermark or the rest of a border may hide the
# others.
COUNTED = 0.875
ROUNDING = 1e-4  # more than sums of float32 err by
TURNS = (-2, -1, 1, 2)  # degrees
SHIFTS = 0.02  # share of the box, each way
FINE_SHIFTS = 0.01
SCALES = (-0.025, 0.025)  # share of the box, at each side


@dataclass(frozen=True)
class _Move:
    """A turn in degrees, and how far each side of the box moves, in shares of the box."""

    degrees: int = 0
    left: float = 0.0
    top: float = 0.0
    right: float = 0.0
    bottom: float = 0.0


def _shifts(share: float) -> tuple[_Move, ...]:
    """To the eight neighbours."""
    steps = (-share, 0.0, share)
    return tuple(_Move(0, x, y, x, y) for x in steps for y in steps if x or y)


# One group after the other, each from where the best move of the one before led.
MOVES = (
    tuple(_Move(degrees) for degrees in TURNS),
    _shifts(SHIFTS),
    tuple(_Move(0, -share, -share, share, share) for share in SCALES),
    _shifts(FINE_SHIFTS),
)
# Shapes below: P pairs of pictures.


def correlate(
    first: np.ndarray, first_boxes: np.ndarray, second: np.ndarray, second_boxes: np.ndarray
) -> np.ndarray:
    """How well the gradients of two pictures agree within their boxes.

    This is the correlation of their gradients, averaged over the best 14 of 4 × 4 places; it does
    not depend on brightness and contrast.

    Args:
        first, second: (P,) RECORD.
        first_boxes, second_boxes: (P, 4) left, top, right, bottom as shares of the whole picture.

    Returns:
        (P,) float32 in [-1, 1]; -1 where too little is shown to compare.
    """
    mine = _gradients(_resampled(first["grey"], first_boxes))
    return _agreement(mine, _gradients(_resampled(second["grey"], second_boxes)))


def shows_enough(pictures: np.ndarray, boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Whether a picture shows enough to reach a correlation, as the first one, with any other.

    A place's correlation is at most the square root of its energy's share in energy and floor,
    whatever the other picture. The bound of a picture is the mean over the best of those places
    that count at least.

    Args:
        pictures: (P,) RECORD.
        boxes: (P, 4).
        threshold: from 0 to 1.

    Returns:
        (P,) bool; False is certain.
    """
    energy, floor = _energy(_gradients(_resampled(pictures["grey"], boxes)))
    most = -np.sort(-np.sqrt(energy / (energy + floor)), axis=1)
    num_shown = np.maximum((energy > floor).sum(axis=1), MIN_PLACES)
    enough: np.ndarray = _mean_of_best(most, num_shown) >= threshold - ROUNDING
    return enough


def align(
    first: np.ndarray,
    first_boxes: np.ndarray,
    second: np.ndarray,
    second_boxes: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """As `correlate`, after the second picture has been turned by up to 2°, shifted by up to 3 %
    and scaled by 5 % so that it agrees best. The search is greedy, and ends at the threshold.
    """
    mine = _gradients(_resampled(first["grey"], first_boxes))
    grey = second["grey"].astype(np.float32)
    boxes = second_boxes.copy()
    best = _agreement(mine, _gradients(_resampled(grey, boxes)))
    for moves in MOVES:
        low = np.flatnonzero(best < threshold)
        best[low], grey[low], boxes[low] = _best_move(
            moves, mine[low], grey[low], boxes[low], best[low]
        )
    return best


def _best_move(
    moves: Sequence[_Move], mine: np.ndarray, grey: np.ndarray, boxes: np.ndarray, best: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pair make the move after which it agrees best, or none.

    Args:
        moves: tried from the same start.
        mine: (P, 16, 72), gradients of the first pictures.
        grey, boxes: (P, 32, 32) and (P, 4), the second ones.
        best: (P,), their agreement before any move.

    Returns:
        The new agreement, small copies and boxes.
    """
    start_boxes = boxes
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    # From the same start; moves have most of these in common.
    turned = {0: grey}
    across: dict[tuple[float, float], np.ndarray] = {}
    down: dict[tuple[float, float], np.ndarray] = {}
    rows: dict[tuple[int, float, float], np.ndarray] = {}
    for move in moves:
        sides = start_boxes + size * np.array([move.left, move.top, move.right, move.bottom])
        if move.degrees not in turned:
            flat = turned[0].reshape(-1, GREY_SIDE**2) @ _turning(move.degrees)
            turned[move.degrees] = flat.reshape(grey.shape)
        horizontal = (move.left, move.right)
        if horizontal not in across:
            across[horizontal] = _weights(sides[:, 0], sides[:, 2])
        vertical = (move.top, move.bottom)
        if vertical not in down:
            down[vertical] = _weights(sides[:, 1], sides[:, 3])
        turned_rows = (move.degrees, *vertical)
        if turned_rows not in rows:
            rows[turned_rows] = down[vertical] @ turned[move.degrees]
        samples = rows[turned_rows] @ across[horizontal].transpose(0, 2, 1)
        agreement = _agreement(mine, _gradients(samples))
        better = agreement > best
        best = np.maximum(best, agreement)
        boxes = np.where(better[:, None], sides, boxes)
        if move.degrees:
            grey = np.where(better[:, None, None], turned[move.degrees], grey)
    return best, grey, boxes


@cache
def _turning(degrees: float) -> csr_array:
    """(1024, 1024) matrix that turns a flattened small copy about its centre."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = np.full(2, (GREY_SIDE - 1) / 2)
    # Turning is linear: its matrix is what becomes of each single pixel, at most four others.
    pixels = np.eye(GREY_SIDE**2, dtype=np.float32).reshape(-1, GREY_SIDE, GREY_SIDE)
    offset = centre - turn @ centre
    turned = [affine_transform(pixel, turn, offset, order=1, mode="nearest") for pixel in pixels]
    return csr_array(np.array(turned).reshape(GREY_SIDE**2, -1))


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
    shares = np.arange(GREY_SIDE) - centres[:, :, None]
    np.abs(shares, out=shares)
    shares /= reach
    np.subtract(1, shares, out=shares)
    weights: np.ndarray = np.maximum(shares, 0, out=shares).astype(np.float32)
    weights /= np.maximum(weights.sum(axis=2, keepdims=True), 1e-6)
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
    my_energy, floor = _energy(mine)
    their_energy, _ = _energy(theirs)
    correlation = (mine * theirs).sum(axis=2) / np.sqrt(
        (my_energy + floor) * (their_energy + floor)
    )
    shown = np.maximum(my_energy, their_energy) > floor
    num_shown = shown.sum(axis=1)
    best_first = -np.sort(np.where(shown, -correlation, np.inf), axis=1)
    mean = _mean_of_best(best_first, num_shown)
    # -1: too little is shown to call them the same.
    return np.where(num_shown >= MIN_PLACES, mean, -1).astype(np.float32)


def _energy(gradients: np.ndarray) -> tuple[np.ndarray, float]:
    """(P, 16), by place, and what a place shows nothing below."""
    return (gradients**2).sum(axis=2), FLAT**2 * gradients.shape[2]


def _mean_of_best(best_first: np.ndarray, num_shown: np.ndarray) -> np.ndarray:
    """(P, 16), (P,) → (P,): the mean over COUNTED of the shown places."""
    num_counted = np.maximum(np.ceil(num_shown * COUNTED), 1)
    counted = np.arange(best_first.shape[1]) < num_counted[:, None]
    mean: np.ndarray = np.where(counted, best_first, 0).sum(axis=1) / num_counted
    return mean
