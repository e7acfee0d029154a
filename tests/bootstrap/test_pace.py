"""Trainings end in time however fast the machine turns out to be: told by a clock that the tests
turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from hdm.bootstrap.learning import FINAL_RATE, WARMUP, rate_share
from hdm.bootstrap.pace import Budget, Pace, Schedule
from tests.clock import Clock


def trained(
    planned: int, until: float, step_seconds: Callable[[int], float]
) -> tuple[float, list[float]]:
    """How long a training of some planned steps took, and its rates."""
    clock, schedule, rates = Clock(), Schedule([(0, planned)]), list[float]()
    pace = Pace(schedule, 0, clock.seconds + until, clock)
    for step in itertools.count():
        if step == schedule.num_steps:
            return clock.seconds - 1000, rates
        rates.append(rate_share(schedule, step))
        clock.seconds += step_seconds(step)
        pace.look(step + 1)
    raise AssertionError


@pytest.mark.parametrize(
    "step_seconds",
    [
        lambda step: 0.1,
        lambda step: 0.5,
        lambda step: 0.02,
        lambda step: 0.1 if step < 300 else 0.4,
        lambda step: 0.3 if step < 100 else 0.05,
        lambda step: (0.05, 0.2)[step // 50 % 2],
    ],
    ids=["as planned", "slow", "fast", "slower later", "faster later", "changing"],
)
def test_a_training_ends_in_time_at_its_lowest_rate(step_seconds: Callable[[int], float]) -> None:
    took, rates = trained(1000, 100.0, step_seconds)
    assert took == pytest.approx(100, rel=0.03)
    assert rates[-1] < 2 * FINAL_RATE
    top = rates.index(max(rates))
    falls = [before - after for before, after in itertools.pairwise(rates[top:])]
    assert min(falls) >= 0
    assert max(falls) < 0.05  # no jump where the number of steps was changed
    assert top < 3 * WARMUP * len(rates) + 1


def test_a_training_that_begins_too_late_takes_a_single_step_more() -> None:
    _, rates = trained(1600, -5.0, lambda step: 0.1)
    assert len(rates) == 2


def test_without_a_time_the_plan_stays() -> None:
    clock, schedule = Clock(), Schedule([(0, 100)])
    pace = Pace(schedule, 0, None, clock)
    for step in range(1, 101):
        clock.seconds += 60
        pace.look(step)
    assert schedule.bends == [(0, 100)]


def test_a_schedule_read_back_is_the_same() -> None:
    schedule = Schedule([(0, 100)])
    schedule.bend(50, 60)
    schedule.bend(55, 80)
    again = Schedule(schedule.bends)
    assert [again.progress(step) for step in range(55, 81)] == [
        schedule.progress(step) for step in range(55, 81)
    ]
    assert again.progress(80) == 1


def test_time_is_shared_among_what_is_left_and_measuring_keeps_its_part(tmp_path: Path) -> None:
    clock = Clock()
    expected = {"first": 40.0, "second": 40.0, "measuring": 20.0}
    budget = Budget(100.0, clock.seconds, expected, tmp_path / "spent.json", clock)
    assert budget.until("first") == pytest.approx(1040)
    clock.seconds += 70  # the first took longer, as the whole machine did
    assert budget.until("second") == pytest.approx(1070 + 20)
    assert budget.until("second", progress=0.75) == pytest.approx(1070 + 10)
    budget.save()
    clock.seconds += 500  # nobody worked on it
    begun_again = clock.seconds - 30  # and reading the pictures anew took so long
    again = Budget(100.0, begun_again, expected, tmp_path / "spent.json", clock)
    assert again.until("second") == pytest.approx(clock.seconds + 20)
    clock.seconds += 31
    assert again.until("second") == pytest.approx(clock.seconds)
