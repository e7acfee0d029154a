"""Costs: their arithmetic, and steps in turns."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hdm.lab import cost
from hdm.lab.cost import Cost
from hdm.training.state.position import Position
from tests.training.workshop import make_workshop

SCHEDULE = Cost(((0.0, 0.5), (0.75, 1.25), (0.9, 1.0)))


@pytest.mark.parametrize("found", [SCHEDULE, Cost(((0.0, 0.8),)), Cost(((0.0, 1.7),))])
def test_time_is_the_integral_of_the_ratio_and_the_share_its_inverse(found: Cost) -> None:
    middles = (np.arange(100_000) + 0.5) / 100_000
    ratios = np.select(
        [middles >= start for start, _ in reversed(found.parts)],
        [ratio for _, ratio in reversed(found.parts)],
    )
    for share in (0.1, 0.5, 0.75, 0.8, 0.95, 1.0):
        spent = ratios[middles < share].sum() / 100_000
        assert found.after(share) == pytest.approx(spent, abs=1e-4)
        assert found.share_at(spent) == pytest.approx(share, abs=1e-3)
    assert found.whole == pytest.approx(ratios.mean(), abs=1e-4)
    assert found.share_at(found.whole + 1) == 1.0


def test_a_ratio_survives_disturbed_rounds() -> None:
    base = [1.0] * 9
    assert cost._ratio([0.8] * 6 + [50.0] * 3, base) == pytest.approx(0.8)
    assert cost._ratio(
        [0.8 * slow for slow in (1, 1, 5, 5, 9, 9, 9, 2, 2)], [1.0, 1, 5, 5, 9, 9, 9, 2, 2]
    ) == pytest.approx(0.8)


class Clocked:
    """A training whose steps take a time that depends on how far it is, by a clock of the test's
    own.
    """

    def __init__(self, name: str, clock: SimpleNamespace, late: float) -> None:
        self.name, self.clock, self.late, self.steps = name, clock, late, 0
        self.state, self.num_images = SimpleNamespace(position=Position()), 100
        self.ranks = SimpleNamespace(device=SimpleNamespace(type="cpu"))
        self.phase = SimpleNamespace(batch_size=10)

    def step(self) -> None:
        self.steps += 1
        first = self.steps <= cost.WARM_UP
        now = self.state.position
        assert now.num_images_seen < self.num_images
        self.clock.now += 100.0 if first else self.late if now.num_images_seen >= 75 else 1.0
        self.clock.order.append(self.name)
        self.state.position = replace(now, num_images_seen=now.num_images_seen + 10)


def test_steps_are_made_in_turns_at_every_point_of_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0, order=[])
    monkeypatch.setattr(time, "process_time", lambda: clock.now)
    trainers: Any = [Clocked("a", clock, 1.0), Clocked("b", clock, 3.0), Clocked("c", clock, 2.0)]
    found = cost._in_turns(trainers, [0.0, 0.75], rounds=12)
    assert found == [[[1.0] * 12, [late] * 12] for late in (1.0, 3.0, 2.0)], (
        "warm-up is left out, each point has its own steps"
    )
    rounds = [clock.order[start : start + 3] for start in range(0, len(clock.order), 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert {each[0] for each in rounds} == {"a", "b", "c"}, "nobody is always the first"


def test_a_larger_batch_is_compared_by_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = make_workshop(tmp_path)
    phase = workshop.pipeline.model_dump(mode="json")["train"]["phases"][0]
    sizes = {size: workshop.changed(phases=[{**phase, "batch_size": size}]) for size in (8, 16)}
    by_pipeline = {id(changed.pipeline): changed for changed in sizes.values()}
    monkeypatch.setattr(
        cost, "_job", lambda pipeline, store, folder: by_pipeline[id(pipeline)].job(folder)
    )
    monkeypatch.setattr(
        cost, "_run", lambda request, device: [[[1.0, 1.0, 1.0]], [[1.5, 1.5, 1.5]]]
    )
    found = cost.measure_costs(
        {"small": sizes[8].pipeline, "large": sizes[16].pipeline}, workshop.store
    )
    assert {name: each.parts for name, each in found.items()} == {
        "small": ((0.0, 1.0),),
        "large": ((0.0, 0.75),),
    }


def test_the_process_times_steps_of_real_trainings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop = make_workshop(tmp_path)
    jobs = [workshop.job(tmp_path / name) for name in ("one", "other")]
    request = tmp_path / "request.json"
    request.write_text(
        json.dumps({"jobs": [asdict(job) for job in jobs], "starts": [0.0, 0.5], "rounds": 2})
    )
    cost.main(request)
    seconds = json.loads(capsys.readouterr().out)
    assert [[len(part) for part in mine] for mine in seconds] == [[2, 2], [2, 2]]
    assert all(taken > 0 for mine in seconds for part in mine for taken in part)
