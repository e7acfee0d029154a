"""How often the judge says what one sees: on generated pictures that were labelled by eye."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hdm.demo.detector import Found, detect
from hdm.demo.judge import QUESTIONS, place_of
from hdm.statistics import Share

FOLDER = Path(__file__).parent / "labelled"
SIDE, COLUMNS = 64, 16  # of a picture in pixels, and pictures a row


@dataclass(frozen=True)
class Label:
    """One object of a labelled picture; kind and colour are None where one sees none, or several
    colours.
    """

    picture: int
    set: str
    place: str
    kind: str | None
    colour: str | None
    unsure: bool


def read_labels(folder: Path = FOLDER) -> list[Label]:
    """What `labels.csv` says."""
    with (folder / "labels.csv").open(newline="") as file:
        return [
            Label(
                int(row["picture"]),
                row["set"],
                row["place"],
                None if row["kind"] == "none" else row["kind"],
                None if row["colour"] == "mixed" else row["colour"],
                bool(row["unsure"]),
            )
            for row in csv.DictReader(file)
        ]


def compare(folder: Path = FOLDER) -> Iterator[tuple[Label, Found | None]]:
    """Each label with what the judge found there; None: nothing."""
    sheet = np.asarray(Image.open(folder / "pictures.png").convert("RGB"))
    by_picture: dict[int, list[Label]] = defaultdict(list)
    for label in read_labels(folder):
        by_picture[label.picture].append(label)
    for number, labels in by_picture.items():
        row, column = divmod(number, COLUMNS)
        found = detect(sheet[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE])
        yield from zip(labels, _in_order(found, labels), strict=True)


def _in_order(found: list[Found], labels: list[Label]) -> list[Found | None]:
    """The largest objects, as many as there are labels, in their order: left to right, or top to
    bottom.
    """
    if len(found) < len(labels):
        return [None] * len(labels)
    axis = int(labels[0].place in ("top", "bottom"))
    return [*sorted(found[: len(labels)], key=lambda thing: thing.centre[axis])]


def agreement(pairs: Sequence[tuple[Label, Found | None]]) -> dict[str, Share]:
    """By question of the judge, on how many objects it says what the label says."""
    right: Counter[str] = Counter()
    pictures = Counter(label.picture for label, _ in pairs)
    for label, found in pairs:
        right["kind"] += label.kind == (found.kind if found else None)
        right["colour"] += label.colour == (found.colour if found else None)
        alone = pictures[label.picture] == 1
        right["place"] += found is not None and (not alone or place_of(found.centre) == label.place)
    return {name: Share(right[name], len(pairs)) for name in QUESTIONS}
