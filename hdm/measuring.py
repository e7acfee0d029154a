"""Measures the quality of components piece by piece, within a time limit."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hdm.progress import track

PIECE = 16  # items, at least, unless there are fewer in all


class Measure(ABC):
    """One thing to measure, over items that are numbered from 0.

    Args:
        count: items in all.
        piece: items of a piece, about.
    """

    def __init__(self, count: int, piece: int = PIECE) -> None:
        self.count = count
        self.num_pieces = max(1, count // piece)
        self.pieces_done = self.items_done = 0

    def measure_next(self) -> None:
        """The next piece: every n-th item, so that however few pieces are measured, they are from
        everywhere.
        """
        items = range(self.pieces_done, self.count, self.num_pieces)
        self.add(items)
        self.pieces_done += 1
        self.items_done += len(items)

    @abstractmethod
    def add(self, items: Sequence[int]) -> None:
        """Take some items in."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """What the items taken in so far say, in terms of JSON."""


def measure_in_time(
    measures: Mapping[str, Measure],
    until: float | None,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Let the measures take their pieces in turn, the first of each in any case.

    Args:
        measures: by name.
        until: begin no piece that would end after this; None: take them all.
        now: the clock, in seconds.
    """
    longest = dict.fromkeys(measures, 0.0)
    with track("measuring", sum(one.num_pieces for one in measures.values()), "pieces") as bar:
        waiting = list(measures)
        while waiting:
            # This is a copy, since measures leave the list in the loop.
            for name in tuple(waiting):
                one = measures[name]
                begun = now()
                # The next piece is expected to take as long as the longest so far.
                late = until is not None and begun + longest[name] > until
                if one.pieces_done == one.num_pieces or (one.pieces_done and late):
                    waiting.remove(name)
                    continue
                one.measure_next()
                longest[name] = max(longest[name], now() - begun)
                bar.advance(1)


def seconds_of_all(measures: Mapping[str, Measure]) -> float:
    """Seconds that all pieces would take, estimated by measuring the first piece of each."""
    total = 0.0
    for one in measures.values():
        begun = time.monotonic()
        one.measure_next()
        total += (time.monotonic() - begun) * one.num_pieces
    return total


def balance(wanted: np.ndarray, others: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How well each threshold separates two sets of values: the share of the wanted ones that reach
    it or the share of the others that do not, whichever is less; NaN if either set is empty.
    """
    if not len(wanted) or not len(others):
        return np.full(len(thresholds), np.nan)
    missed = np.searchsorted(np.sort(wanted), thresholds) / len(wanted)
    caught = np.searchsorted(np.sort(others), thresholds) / len(others)
    return np.minimum(1 - missed, caught)


def share(right: np.ndarray) -> float | None:
    """The mean of flags, as JSON holds it; None of none."""
    return round(float(right.mean()), 4) if len(right) else None
