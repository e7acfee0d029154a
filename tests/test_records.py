"""Files of our own that hold JSON of another shape than was written: an error that names the file
and what to do.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hdm.bootstrap.bootstrapping import Plan, bootstrap
from hdm.bootstrap.pace import Budget
from hdm.demo.bootstrap import scene_examples
from hdm.errors import DamagedError, HdmError, InputError
from hdm.files import read_record, write_json
from hdm.lab.lab_folder import CostBook
from hdm.models.components import resolve, weights_digest
from hdm.models.settings import Components
from hdm.training.measures.records import Timing
from hdm.training.process.job import read_outcome

OTHER_SHAPES = [[], 3, None, "x", {"seconds": "many"}, {"asked": 1}, {"a": {"b": [["c"]]}}]


@pytest.mark.parametrize("value", OTHER_SHAPES, ids=str)
def test_the_seconds_that_a_bootstrap_spent(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "spent.json", value)
    with pytest.raises(DamagedError, match=r"spent\.json\)\n  → remove it"):
        Budget(60.0, 0.0, {}, tmp_path / "spent.json")


@pytest.mark.parametrize("value", OTHER_SHAPES, ids=str)
@pytest.mark.parametrize("minutes", [None, 5])
def test_the_plan_of_a_bootstrap(tmp_path: Path, value: Any, minutes: float | None) -> None:
    plan = tmp_path / "out" / ".scratch" / "plan.json"
    write_json(plan, value)
    with pytest.raises(DamagedError, match=r"plan\.json\)\n  → remove .*out and run"):
        bootstrap(scene_examples(16, 16), tmp_path / "out", source="scenes", minutes=minutes)
    assert json.loads(plan.read_text()) == value


def test_the_plan_of_another_release(tmp_path: Path) -> None:
    asked = {"minutes": 5}
    kept = {"asked": asked, "plan": asdict(Plan()), "expected": {"measuring": 1.0}, "finished": {}}
    write_json(tmp_path / "out" / ".scratch" / "plan.json", {**kept, "cut_at": None})
    with pytest.raises(InputError, match=r"another release.*\n  → remove .*out and run"):
        bootstrap(scene_examples(16, 16), tmp_path / "out", source="scenes", minutes=5)


@pytest.mark.parametrize("value", [[], 3, {"a": 1}, {"a": {"b": [["c", 1]]}}], ids=str)
def test_the_costs_of_a_lab(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "costs.json", value)
    with pytest.raises(DamagedError, match=r"costs\.json\)\n  → remove it"):
        CostBook(tmp_path / "costs.json", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [[], 3, {"rank": 1}, {"state": {}}], ids=str)
def test_how_a_rank_ended(tmp_path: Path, value: Any) -> None:
    """It says nothing, like one that was killed."""
    write_json(tmp_path / "outcome-0.json", value)
    assert read_outcome(tmp_path) == {}


@pytest.mark.parametrize("line", [b"[]", b"3", b"{", b'{"hours": "x"}', b"\xff"], ids=str)
def test_the_last_line_of_a_training_s_timing(tmp_path: Path, line: bytes) -> None:
    """It costs the totals, and no training."""
    (tmp_path / "timing.jsonl").write_bytes(line + b"\n")
    assert Timing(tmp_path / "timing.jsonl", 0).before == {}


@pytest.mark.parametrize("field", ["components", "files"])
@pytest.mark.parametrize("value", [[], 3, {"autoencoder": 1}], ids=str)
def test_a_folder_of_components(tmp_path: Path, field: str, value: Any) -> None:
    folder = tmp_path / "mine"
    write_json(folder / "autoencoder" / "config.json", {})
    listed = {"components": {"autoencoder": "autoencoder"}, field: value}
    write_json(folder / "components.json", listed)
    with pytest.raises(InputError, match=rf"{field} is not what `hdm bootstrap` writes"):
        weights_digest(resolve(Components(folder=str(folder))).need("autoencoder"))


def test_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"nowhere\.json"):
        read_record(tmp_path / "nowhere.json", dict[str, int], "")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DamagedError, match=r"folder\.json"):
        read_record(tmp_path / "folder.json", dict[str, int], "")
    write_json(tmp_path / "secret.json", {})
    (tmp_path / "secret.json").chmod(0)
    if os.geteuid():
        with pytest.raises(HdmError, match="cannot read"):
            read_record(tmp_path / "secret.json", dict[str, int], "")
