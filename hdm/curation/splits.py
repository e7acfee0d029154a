"""Which kept pictures are for training, and which are kept out of it."""

from __future__ import annotations

from collections.abc import Sequence

MIN_PICTURES = 3  # with fewer there is nothing to spare


def assign_splits(sha256: Sequence[str], validation: float, held_out: float) -> list[str]:
    """A split for every picture, by its content alone: adding or removing others moves none.

    A picture whose hash, as a number in [0, 1), lies under `held_out` is held out, one under `held_out + validation` is for validation.
    In a small set a share may thus get nothing; the training picture that comes nearest is then taken.

    Args:
        sha256: of each picture's pixels, as hex digits.
        validation, held_out: shares in [0, 1).

    Returns:
        "train", "validation" or "held_out" each.
    """
    places = [int(digest[:13], 16) / 16**13 for digest in sha256]
    splits = [
        "held_out"
        if place < held_out
        else "validation"
        if place < held_out + validation
        else "train"
        for place in places
    ]
    for split, share in (("held_out", held_out), ("validation", validation)):
        if share > 0 and split not in splits and len(splits) >= MIN_PICTURES:
            nearest = min(
                (place, number) for number, place in enumerate(places) if splits[number] == "train"
            )
            splits[nearest[1]] = split
    return splits
