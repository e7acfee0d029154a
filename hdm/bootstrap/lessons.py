"""The captioned pictures on which components are trained, and batches of them."""

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
FEWEST_HELD_OUT = 4  # measuring compares each picture's caption with those of others


@dataclass(frozen=True)
class Lessons:
    """Examples for training, and those kept out of it for measuring."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    cut_at: int | None = None  # number of examples read, if there was no time for all

    @property
    def captions(self) -> list[str]:
        """Every training caption, in order."""
        return [caption for example in self.train for caption in example.captions]

    def digest(self) -> str:
        """sha256 of all captions and pixels in order, as 64 hex digits."""
        sha256 = hashlib.sha256()
        for example in (*self.train, *self.held_out):
            sha256.update(canonical_json([example.captions, example.pixels.shape]))
            sha256.update(example.pixels.tobytes())
        return sha256.hexdigest()


def gather(
    examples: Iterable[Example],
    size_px: int,
    max_pictures: int | None,
    held_out: float = 0.05,
    until: float = math.inf,
) -> Lessons:
    """Read the examples into memory, with pictures reduced to a shorter side of at most `size_px`.

    Args:
        examples: read once.
        size_px: shorter side; smaller pictures stay as they are.
        max_pictures: read only the first N examples; None: all.
        held_out: share kept out of training, at least four examples.
        until: read no more after this time of `time.monotonic`, if there are enough.

    Raises:
        InputError: there are fewer than 16 captioned pictures.
    """
    captioned: list[Example] = []
    cut_at = None
    for count, example in enumerate(islice(examples, max_pictures)):
        if len(captioned) >= FEWEST and time.monotonic() > until:
            cut_at = count
            break
        if any(caption.strip() for caption in example.captions):
            pixels = resized(example.pixels, size_px, enlarge=False)
            captioned.append(Example(example.captions, pixels))
    if len(captioned) < FEWEST:
        raise InputError(
            f"found {len(captioned)} captioned pictures; at least {FEWEST} are needed",
            do="name a source with more, or its caption column",
        )
    # With few pictures, more than a twentieth is held out: measuring needs at least four.
    # Every n-th, so that an ordered source loses none of its parts to the held-out examples.
    every = min(round(1 / held_out), len(captioned) // FEWEST_HELD_OUT)
    train = [example for number, example in enumerate(captioned) if number % every]
    return Lessons(tuple(train), tuple(captioned[::every]), cut_at)


class Crops:
    """Batches of square crops; each is a function of the seed and its number.

    Pictures are first resized to the crop's side by their shorter side, so that a crop shows all of
    it.

    Args:
        examples: pictures; captions are not used.
        sizes_px: each batch has a random side out of these.
        batch_size: crops a batch, or fewer if there are fewer pictures.
        seed: of order, sides and positions.
    """

    def __init__(
        self, examples: Sequence[Example], sizes_px: Sequence[int], batch_size: int, seed: int
    ) -> None:
        self.by_size = {}
        for size in sizes_px:
            # Resize once, so that a crop is only a copy.
            self.by_size[size] = [resized(example.pixels, size) for example in examples]
        self.count = len(examples)
        self.batch_size = batch_size
        self.seed = seed

    def batch(self, number: int) -> Tensor:
        """(B, 3, S, S) in [-1, 1]."""
        # No generator is carried from batch to batch, so a resumed training draws the same crops.
        rng = np.random.default_rng((self.seed, number))
        size = int(rng.choice(list(self.by_size)))
        pictures = self.by_size[size]
        items = batch_items(self.count, self.batch_size, self.seed, number)
        squares = [random_square(pictures[item], size, rng) for item in items]
        return to_image(np.stack(squares))


def batch_items(count: int, batch_size: int, seed: int, number: int) -> np.ndarray:
    """The items in [0, count) of the batch with this number. Over all batches every item comes once
    before any comes again.
    """
    batch_size = min(batch_size, count)
    positions = np.arange(number * batch_size, (number + 1) * batch_size)
    return endless(positions, count, seed)
