"""Whether two pictures whose hashes are near show the same: their small copies, laid over each other and compared place by place.

Independent of the hashes: these see the signs of the lowest frequencies, this the gradients in each of 16 places.
"""

from __future__ import annotations

import numpy as np

from hdm.curation.fingerprints import GREY_SIDE

SAMPLES = (
    26  # a side, of the laid-over copies; the outermost, into which a border leaks, are left out
)
PLACES = 4  # a side, of 6 × 6 samples
GREY_PLACES = 16  # a side, where drawings are compared
# Root mean square of gradients, in grey levels, below which a place shows nothing. Added to both sides' energy, it keeps what two smooth
# places have in common, a slope and the noise, from counting as agreement.
FLAT = 1.0
MIN_PLACES = 4  # with fewer that show something there is nothing to compare
COLOURLESS = 4.0  # root mean square of Cb and Cr about grey
MIN_COLOUR_COSINE = 0.5
HOPELESS = 0.45  # below the threshold: no shift makes up for that
_SHIFTS = [(x, y) for x in (-0.02, 0, 0.02) for y in (-0.02, 0, 0.02) if x or y]
_SCALES = (-0.025, 0.025)


def correlate(
    first: np.ndarray,
    first_boxes: np.ndarray,
    second: np.ndarray,
    second_boxes: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """How well the gradients of what two pictures show within their boxes agree.

    The median over 4 × 4 places of the correlation of their gradients. Brightness and contrast do not change it; a watermark or the
    corners that a rotation leaves black are a few places of many. Where it falls little short of the threshold, the pictures are
    shifted by up to 2 % and scaled by 2.5 % against each other, and the best of these is taken.

    Args:
        first, second: (P,) RECORD.
        first_boxes, second_boxes: (P, 4) left, top, right, bottom as shares of the whole picture.
        threshold: where it decides.

    Returns:
        (P,) float32 in [-1, 1]; -1 where too little is shown to compare.
    """
    mine = _gradients(_resampled(first["grey"], first_boxes))

    def moved(which: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
        place = second_boxes[which]
        size = place[:, 2:] - place[:, :2]
        corners = [place[:, :2] + size * (shift - scale), place[:, 2:] + size * (shift + scale)]
        theirs = _gradients(_resampled(second["grey"][which], np.hstack(corners)))
        return _agreement(mine[which], theirs)

    everything = np.arange(len(first))
    best = moved(everything, np.zeros(2), np.zeros(1))
    near = everything[(best < threshold) & (best > threshold - HOPELESS)]
    shifts = np.zeros((len(near), 2))
    for shift in _SHIFTS:
        found = moved(near, np.array(shift), np.zeros(1))
        shifts[found > best[near]] = shift
        best[near] = np.maximum(best[near], found)
    for scale in _SCALES:
        best[near] = np.maximum(best[near], moved(near, shifts, np.array([scale])))
    return best


def colours_agree(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether one picture's colours are the other's, however saturated; a grey one agrees with any.

    Args:
        first, second: (P,) RECORD.

    Returns:
        (P,) bool.
    """
    mine, theirs = (
        side["colour"][:, 1:-1, 1:-1].reshape(len(side), -1).astype(np.float32) - 128
        for side in (first, second)  # without the outermost, into which a border leaks
    )
    cosine = (mine * theirs).sum(1) / np.maximum(_norm(mine) * _norm(theirs), 1e-6)
    least = np.minimum(_norm(mine), _norm(theirs)) / np.sqrt(mine.shape[1])
    return (least < COLOURLESS) | (cosine >= MIN_COLOUR_COSINE)


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The largest difference of the whole pictures at any place, with that in overall brightness taken out.

    Args:
        first, second: (P,) RECORD.

    Returns:
        (P,) float32, levels: of the grey ones' means in 16 × 16 places, or of Cb's and Cr's in 8 × 8.
    """
    grey = first["grey"].astype(np.float32) - second["grey"]
    grey -= np.median(grey, axis=(1, 2), keepdims=True)
    side = GREY_SIDE // GREY_PLACES
    means = grey.reshape(len(grey), GREY_PLACES, side, GREY_PLACES, side).mean(axis=(2, 4))
    colour = first["colour"].astype(np.float32) - second["colour"]
    return np.maximum(np.abs(means).max(axis=(1, 2)), np.abs(colour).max(axis=(1, 2, 3)))


def mirror(records: np.ndarray) -> np.ndarray:
    """The fingerprints of the mirror images, as far as the comparisons here read them."""
    turned = records.copy()
    turned["grey"] = records["grey"][:, :, ::-1]
    turned["colour"] = records["colour"][:, :, ::-1]
    turned["frame"][:, [0, 2]] = 1 - records["frame"][:, [2, 0]]
    return turned


def _norm(values: np.ndarray) -> np.ndarray:
    return np.sqrt((values**2).sum(axis=1))


def _resampled(grey: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """What boxes (P, 4) of small copies (P, 32, 32) show, as (P, 26, 26) float32: bilinear, with no less than a sample's width."""
    across = _weights(boxes[:, 0], boxes[:, 2])
    down = _weights(boxes[:, 1], boxes[:, 3])
    return down @ grey.astype(np.float32) @ across.transpose(0, 2, 1)


def _weights(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(P, 26, 32): each sample's shares of the pixels."""
    step = (high - low) / SAMPLES * GREY_SIDE
    centres = low[:, None] * GREY_SIDE + (np.arange(SAMPLES) + 0.5) * step[:, None] - 0.5
    reach = np.maximum(step, 1)[:, None, None]
    shares = 1 - np.abs(np.arange(GREY_SIDE) - centres[:, :, None]) / reach
    shares = np.maximum(shares, 0).astype(np.float32)
    return shares / np.maximum(shares.sum(axis=2, keepdims=True), 1e-6)


def _gradients(grey: np.ndarray) -> np.ndarray:
    """(P, 26, 26) → (P, 16, 72): across and down, by place."""
    inner = grey[:, 1:, 1:]
    corner = inner[:, :-1, :-1]
    both = np.stack([inner[:, :-1, 1:] - corner, inner[:, 1:, :-1] - corner], axis=1)
    side = both.shape[2] // PLACES
    places = both.reshape(len(grey), 2, PLACES, side, PLACES, side).transpose(0, 2, 4, 1, 3, 5)
    return places.reshape(len(grey), PLACES**2, 2 * side**2)


def _agreement(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The median correlation over the places where at least one of them shows something."""
    energy = (mine**2).sum(axis=2), (theirs**2).sum(axis=2)
    floor = FLAT**2 * mine.shape[2]
    correlation = (mine * theirs).sum(axis=2) / np.sqrt((energy[0] + floor) * (energy[1] + floor))
    shown = np.maximum(*energy) > floor
    correlation[~shown] = np.nan
    enough = shown.sum(axis=1) >= MIN_PLACES
    found = np.full(len(mine), -1, np.float32)
    found[enough] = np.nanmedian(correlation[enough], axis=1)
    return found
