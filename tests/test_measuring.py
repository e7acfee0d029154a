"""Measuring in pieces: as many as there is time for, from everywhere, by a clock that the tests
turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hdm.demo.bootstrap import SceneQuality
from hdm.measuring import Measure, balance, measure_in_time
from hdm.models.components import resolve
from hdm.models.settings import Components
from tests.clock import Clock


class Items(Measure):
    """Which items were taken in, each of which takes some seconds."""

    def __init__(self, count: int, clock: Clock, seconds: float) -> None:
        super().__init__(count, piece=10)
        self.clock, self.seconds, self.taken = clock, seconds, list[int]()

    def add(self, items: Sequence[int]) -> None:
        self.clock.seconds += self.seconds * len(items)
        self.taken += items

    def result(self) -> dict[str, Any]:
        return {"taken": self.taken}


def test_without_an_end_all_items_are_measured_once() -> None:
    clock = Clock()
    measures = {"many": Items(105, clock, 1), "few": Items(3, clock, 1)}
    measure_in_time(measures, None, clock)
    for one in measures.values():
        assert sorted(one.taken) == list(range(one.count))
        assert one.items_done == one.count


@pytest.mark.parametrize("seconds", [0.0, 60.0, 125.0, 300.0])
def test_with_an_end_as_many_pieces_as_fit_and_at_least_one_of_each(seconds: float) -> None:
    clock = Clock()
    measures = {"slow": Items(200, clock, 2), "quick": Items(200, clock, 0.1)}
    measure_in_time(measures, 1000 + seconds, clock)
    slow, quick = measures.values()
    assert clock.seconds <= 1000 + max(seconds, 21)  # a piece of each takes 21 s
    assert slow.items_done >= 10
    assert quick.items_done == min(200, max(10, quick.items_done))
    if seconds == 300:
        assert (slow.items_done, quick.items_done) == (140, 200)
    # From everywhere: no half of the items is left out.
    assert 0 < sum(item >= 100 for item in slow.taken) < slow.items_done


def test_what_is_measured_does_not_depend_on_the_pieces() -> None:
    resolved = resolve(Components(folder="demo"))
    whole, cut = (SceneQuality(resolved, 40) for _ in range(2))
    whole.num_pieces = 1
    measure_in_time({"whole": whole, "cut": cut}, None)
    assert cut.num_pieces == 2
    assert cut.result() == pytest.approx(whole.result(), abs=2e-3)


def test_balance_is_that_of_the_worse_side() -> None:
    wanted, others = np.array([0.2, 0.6, 0.8]), np.array([0.1, 0.3, 0.5, 0.6])
    thresholds = np.array([0.0, 0.4, 0.6, 1.0])
    expected = [min((wanted >= t).mean(), (others < t).mean()) for t in thresholds]
    np.testing.assert_allclose(balance(wanted, others, thresholds), expected)
    assert np.isnan(balance(wanted, others[:0], thresholds)).all()
