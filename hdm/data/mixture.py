"""Batches from several weighted data sets, in an order that is a pure function of the number of
images seen.

Each data set has its own clock, the number of its pictures before a position, which sets its
loader's order and draws.
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
    """The assignment of positions to several sets.

    The first set's count is always its rounded share of the positions so far, and the remaining
    positions are divided among the other sets in the same way. In any range of positions, the first
    set's count therefore differs from its share by less than 1, and the others' by little more.

    Args:
        weights: of the sets, positive, with any sum.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        rest = np.cumsum(np.asarray(weights, float)[::-1])[::-1]
        # In integers, counts are exact at every position.
        self._shares = []
        for weight, left in zip(weights[:-1], rest[:-1].tolist(), strict=True):
            # Each share is that of what the sets before it leave, as `before` subtracts them one
            # after the other.
            self._shares.append(round(weight / left * 2**_BITS))

    def before(self, positions: np.ndarray) -> np.ndarray:
        """The number of each set's samples before some positions: (n,) int64 → (number of sets, n)
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
        loaders: one for each data set, with equal batch size, rank and number of processes;
            different seeds make their draws independent.
        weights: of the data sets; a set's share of the images is its weight divided by the sum.

    Raises:
        InputError: their samples cannot share a batch; the error names both sides.
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
        """Number of pictures in the split, over all data sets."""
        return sum(map(len, self._loaders))

    def batch(self, num_images_seen: int) -> Batch:
        """As for a single loader."""
        start = num_images_seen
        stop = num_images_seen + self.batch_size
        whole = self._shares.before(np.array([start, stop])).tolist()
        # Over the global batch, not this process's share: padding must not depend on the ranks.
        longest = 0
        for loader, (first, end) in zip(self._loaders, whole, strict=True):
            if first < end:
                longest = max(longest, loader.longest(first, end))
        num_tokens = self._loaders[0].padded_length(longest)
        begin = start + self.batch_size * self.rank // self.world_size
        end = start + self.batch_size * (self.rank + 1) // self.world_size
        # A set's count rises by one at each of its own positions.
        before = self._shares.before(np.arange(begin, end + 1))
        parts, places = [], []
        for number, counts in enumerate(before):
            taken = np.flatnonzero(np.diff(counts))
            if len(taken):
                samples = self._loaders[number].samples(int(counts[0]), int(counts[-1]), num_tokens)
                # Rows are numbered over all sets from here on, so that `key` finds the file.
                parts.append(replace(samples, rows=samples.rows + self._first_rows[number]))
                places.append(taken)
        return Batch.interleave(parts, places, self.key)

    def key(self, row: int) -> Key:
        """The key of the picture in a row, counted over all data sets' files."""
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
