"""Items with faults that run in the bench's own process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from torch import Tensor

from hdm.bench import correctness
from hdm.bench.asked import Asked, Item
from hdm.kernels.modules import FeedForward
from hdm.planning.measured_file import Row


def fine(asked: Asked) -> Iterator[Row]:
    yield Row("fine", "fast", "a figure", 1.0)


def raises(asked: Asked) -> Iterator[Row]:
    yield Row("raises", "fast", "before", 2.0)
    raise ValueError("planted")


def hangs(asked: Asked) -> Iterator[Row]:
    yield Row("hangs", "fast", "before", 3.0)
    time.sleep(3600)


def dies(asked: Asked) -> Iterator[Row]:
    yield Row("dies", "fast", "before", 4.0)
    os._exit(9)


def errs(asked: Asked) -> Iterator[Row]:
    """The check of sampling, with a kernel whose results are a hundredth too large."""
    right = FeedForward.forward

    def wrong(self: FeedForward, *given: Tensor) -> Tensor:
        return right(self, *given) * 1.01

    FeedForward.forward = wrong  # type: ignore[assignment, method-assign]
    yield from correctness.sampling(asked)


FINE = Item("fine", "fast", 60, fine)
RAISES = Item("raises", "fast", 60, raises)
HANGS = Item("hangs", "fast", 1, hangs)
DIES = Item("dies", "fast", 60, dies)
ERRS = Item("errs", "right", 120, errs)
