"""The captioned pictures that components are trained on, and batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch import Tensor

from hdm.data.crops import as_image, random_square, resized
from hdm.data.examples import Example
from hdm.errors import InputError

FEWEST = 16


@dataclass(frozen=True)
class Lessons:
    """Examples, the last ones kept out of training for measuring."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @property
    def captions(self) -> list[str]:
        """Every training caption, in order."""
        return [caption for example in self.train for caption in example.captions]


def gather(
    examples: Iterable[Example], size_px: int, max_pictures: int | None, held_out: float = 0.05
) -> Lessons:
    """Take the examples in, each picture brought to a shorter side of at most `size_px`.

    Args:
        examples: read once.
        size_px: shorter side; smaller pictures stay as they are.
        max_pictures: stop after so many; None: take all.
        held_out: share kept out of training.

    Raises:
        InputError: there are fewer than 16 captioned pictures.
    """
    taken = [
        Example(example.captions, resized(example.pixels, size_px, enlarge=False))
        for example in islice(examples, max_pictures)
        if any(caption.strip() for caption in example.captions)
    ]
    if len(taken) < FEWEST:
        raise InputError(
            f"found {len(taken)} captioned pictures; at least {FEWEST} are needed",
            do="name a source with more, or its caption column",
        )
    # Every n-th, so that a source in some order loses none of its parts.
    every = max(2, round(1 / held_out))
    kept = [example for place, example in enumerate(taken) if place % every]
    return Lessons(tuple(kept), tuple(taken[::every]))


def crops(
    examples: Sequence[Example], sizes_px: Sequence[int], batch_size: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Endless batches of square crops (B, 3, S, S) in [-1, 1], S drawn from `sizes_px` for each batch.

    The shorter side is brought to S first, so that a crop shows the whole of it.
    """
    by_size = {size: [resized(example.pixels, size) for example in examples] for size in sizes_px}
    for places in order(len(examples), batch_size, rng):
        size = int(rng.choice(list(sizes_px)))
        yield as_image(
            np.stack([random_square(by_size[size][place], size, rng) for place in places])
        )


def order(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of places in [0, count), every place once before any comes again (but for an epoch's short rest)."""
    batch_size = min(batch_size, count)
    while True:
        shuffled = rng.permutation(count)
        yield from (
            shuffled[start : start + batch_size]
            for start in range(0, count - batch_size + 1, batch_size)
        )
