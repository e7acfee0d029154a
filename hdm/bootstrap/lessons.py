"""The captioned pictures that components are trained on, and batches of them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch import Tensor

from hdm.bootstrap.examples import Example
from hdm.chance import endless
from hdm.errors import InputError
from hdm.files import canonical_json
from hdm.pixels import to_image
from hdm.vae.squares import random_square, resized

FEWEST = 16
FEWEST_HELD_OUT = 4  # fewer cannot be measured: each needs others beside it


@dataclass(frozen=True)
class Lessons:
    """Examples, the last ones kept out of training for measuring."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    cut_at: int | None = None  # how many examples were asked for, where there was no time for all

    @property
    def captions(self) -> list[str]:
        """Every training caption, in order."""
        return [caption for example in self.train for caption in example.captions]

    def digest(self) -> str:
        """sha256 of all captions and pixels in order, as 64 hex digits."""
        found = hashlib.sha256()
        for example in (*self.train, *self.held_out):
            found.update(canonical_json([example.captions, example.pixels.shape]))
            found.update(example.pixels.tobytes())
        return found.hexdigest()


def gather(
    examples: Iterable[Example],
    size_px: int,
    max_pictures: int | None,
    held_out: float = 0.05,
    until: float = math.inf,
) -> Lessons:
    """Take the examples in, each picture brought to a shorter side of at most `size_px`.

    Args:
        examples: read once.
        size_px: shorter side; smaller pictures stay as they are.
        max_pictures: stop after so many; None: take all.
        held_out: share kept out of training; at least four are.
        until: take no more after this time of `time.monotonic`, if there are enough.

    Raises:
        InputError: there are fewer than 16 captioned pictures.
    """
    taken: list[Example] = []
    cut_at = None
    for count, example in enumerate(islice(examples, max_pictures)):
        if len(taken) >= FEWEST and time.monotonic() > until:
            cut_at = count
            break
        if any(caption.strip() for caption in example.captions):
            pixels = resized(example.pixels, size_px, enlarge=False)
            taken.append(Example(example.captions, pixels))
    if len(taken) < FEWEST:
        raise InputError(
            f"found {len(taken)} captioned pictures; at least {FEWEST} are needed",
            do="name a source with more, or its caption column",
        )
    # Every n-th, so that a source in some order loses none of its parts.
    every = min(round(1 / held_out), len(taken) // FEWEST_HELD_OUT)
    kept = [example for place, example in enumerate(taken) if place % every]
    return Lessons(tuple(kept), tuple(taken[::every]), cut_at)


class Crops:
    """Batches of square crops; each is a function of the seed and its number.

    The shorter side is brought to the crop's first, so that it shows the whole of it.

    Args:
        examples: pictures; captions are not used.
        sizes_px: the side is drawn from these for each batch.
        batch_size: crops a batch, or as many as there are pictures.
        seed: of order, sides and places.
    """

    def __init__(
        self, examples: Sequence[Example], sizes_px: Sequence[int], batch_size: int, seed: int
    ) -> None:
        self.by_size = {
            size: [resized(example.pixels, size) for example in examples] for size in sizes_px
        }
        self.count = len(examples)
        self.batch_size = batch_size
        self.seed = seed

    def batch(self, number: int) -> Tensor:
        """(B, 3, S, S) in [-1, 1]."""
        rng = np.random.default_rng((self.seed, number))
        size = int(rng.choice(list(self.by_size)))
        pictures = self.by_size[size]
        squares = [
            random_square(pictures[place], size, rng)
            for place in places(self.count, self.batch_size, self.seed, number)
        ]
        return to_image(np.stack(squares))


def places(count: int, batch_size: int, seed: int, number: int) -> np.ndarray:
    """The items in [0, count) of a batch by its number; over all batches every item comes once
    before any comes again.
    """
    batch_size = min(batch_size, count)
    positions = np.arange(number * batch_size, (number + 1) * batch_size)
    return endless(positions, count, seed)
