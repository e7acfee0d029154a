"""Batches from several data sets, each with its weight, in an order that is a pure function of how
many images were seen.

Each data set keeps a clock of its own, which is how many of its pictures come before a position;
its loader's order and draws follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hdm.data.batch import Batch
from hdm.data.loader import Loader
from hdm.errors import InputError
from hdm.keys import Key

_BITS = 20  # of a share: a part in a million, and counts of 2^43 images stay in 64 bits


class Shares:
    """Which of several sets each position belongs to.

    The first set's count is always its share of the positions so far, rounded; what it leaves is
    shared by the others in the same way. So in any stretch of positions the first set's count is
    less than 1 from its share of them, and the others' by little more.

    Args:
        weights: of the sets, positive, of any sum.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        rest = np.cumsum(np.asarray(weights, float)[::-1])[::-1]
        self._shares = [
            round(weight / left * 2**_BITS)
            for weight, left in zip(weights[:-1], rest[:-1].tolist(), strict=True)
        ]

    def before(self, positions: np.ndarray) -> np.ndarray:
        """How many of each set come before some positions: (n,) int64 → (number of sets, n)
        int64.
        """
        left = positions.astype(np.int64)
        counts = []
        for share in self._shares:
            counts.append(left * share + 2 ** (_BITS - 1) >> _BITS)  # rounded
            left = left - counts[-1]
        return np.stack([*counts, left])


class Mixture:
    """Several loaders as one.

    Args:
        loaders: one a data set, alike in batch size, rank and number of processes; different seeds
            keep their draws apart.
        weights: of the data sets; a set's share of the images is its weight over the sum.

    Raises:
        InputError: their samples cannot stand in one batch; both sides are named.
    """

    def __init__(self, loaders: Sequence[Loader], weights: Sequence[float]) -> None:
        first = loaders[0]
        self.batch_size = first.batch_size
        self.rank = first.rank
        self.world_size = first.world_size
        self._loaders = loaders
        self._shares = Shares(weights)
        self._first_rows = np.cumsum([0, *(loader.num_rows for loader in loaders)])
        for loader in loaders[1:]:
            _check_alike(first, loader)

    def __len__(self) -> int:
        """Pictures in the split, of all data sets."""
        return sum(map(len, self._loaders))

    def batch(self, num_images_seen: int) -> Batch:
        """As a loader's."""
        start = num_images_seen
        stop = num_images_seen + self.batch_size
        whole = self._shares.before(np.array([start, stop])).tolist()
        longest = max(
            loader.longest(*span)
            for loader, span in zip(self._loaders, whole, strict=True)
            if span[0] < span[1]
        )
        num_tokens = self._loaders[0].padded_length(longest)
        begin = start + self.batch_size * self.rank // self.world_size
        end = start + self.batch_size * (self.rank + 1) // self.world_size
        before = self._shares.before(np.arange(begin, end + 1))
        parts, places = [], []
        for number, counts in enumerate(before):
            taken = np.flatnonzero(np.diff(counts))
            if len(taken):
                samples = self._loaders[number].samples(int(counts[0]), int(counts[-1]), num_tokens)
                parts.append(replace(samples, rows=samples.rows + self._first_rows[number]))
                places.append(taken)
        return Batch.interleave(parts, places, self.key)

    def key(self, row: int) -> Key:
        """The key of the picture in a row, the data sets' files laid end to end."""
        number = int(self._first_rows.searchsorted(row, side="right")) - 1
        return self._loaders[number].key(row - int(self._first_rows[number]))


def _check_alike(first: Loader, other: Loader) -> None:
    for what, value in first.kind.items():
        if other.kind[what] != value:
            raise InputError(
                f"data sets cannot be mixed: {what} {value} in one, {other.kind[what]} in the"
                " other",
                where=f"{first.path} and {other.path}",
                do="prepare both with the same components and settings of encode",
            )
