"""What is told of a training's speed, against what was done and how long that took."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hdm.models.flops import Pass, forward_flops
from hdm.training.measures.meter import Machine, Meter, power_watts
from hdm.training.measures.records import Timing
from tests.small_models import TINY

CPU = torch.device("cpu")
MODEL = replace(TINY, width=16, head_size=8, mlp_width=32)


def test_rates_are_what_was_counted_by_the_second() -> None:
    meter = Meter(Machine(CPU, 2, 0.5, "set", price_per_hour=3.0), MODEL, None, {"hours": 2.0})
    meter.count(8, 16, 8, 0.5)
    meter.count(8, 16, 24, 0.0)
    done = 3 * (forward_flops(MODEL, Pass(16, 8, 8, 0.5)) + forward_flops(MODEL, Pass(16, 24, 8)))
    found = meter.read(1e-3)
    assert found["tokens_per_sec"] == (8 * 24 + 8 * 40) / 1e-3
    assert found["tflops"] == pytest.approx(done / 1e-3 / 1e12, abs=1e-4)
    assert found["utilisation"] == pytest.approx(done / 1e-3 / (2 * 0.5e12), abs=1e-4)
    assert (found["hours"], found["cost"], found["peak_is"]) == (2.0, 6.0, "set")
    assert "power_watts" not in found, "a CPU does not tell it"
    again = meter.read(1800.0)
    assert (again["tokens_per_sec"], again["hours"], again["cost"]) == (0.0, 2.5, 7.5)


def test_a_peak_that_is_not_set_is_measured() -> None:
    machine = Machine.look(CPU, 1, half=False)
    assert machine.peak_is == "measured"
    assert 1e-4 < machine.peak_tflops < 100, "of some CPU"
    assert Machine.look(CPU, 1, half=False, peak_tflops=7.0) == Machine(CPU, 1, 7.0, "set")
    assert power_watts(CPU, 1) is None


def test_totals_go_on_after_a_stop(tmp_path: Path) -> None:
    path, machine = tmp_path / "timing.jsonl", Machine(CPU, 1, 1.0, "set", 60.0)
    timing = Timing(path, 0)
    assert timing.before == {}
    timing.add(1, 8, 0.5, 0.0, Meter(machine, MODEL, None, {**timing.before, "hours": 1.0}), 10**9)
    with path.open("a") as file:
        file.write('{"step": 2, "hou')
    timing = Timing(path, 8)
    assert timing.before["hours"] == pytest.approx(1.0, abs=0.01)
    timing.add(2, 16, None, 0.0, Meter(machine, MODEL, None, timing.before), 10**9)
    first, second = map(json.loads, path.read_text().splitlines())
    assert second["hours"] >= first["hours"]
    assert second["cost"] == pytest.approx(60 * second["hours"], abs=1e-3)
