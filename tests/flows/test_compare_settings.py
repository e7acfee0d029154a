"""A lab on a real Prefect server: each cell once, what fails is named and stops nothing else, and
the table is of what is there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from flows import compare_settings as deployed
from hdm import stages
from hdm.config import Pipeline
from hdm.errors import HdmError, InputError
from hdm.lab import lab_folder
from hdm.lab.cost import Cost
from hdm.scoring.metrics import Score
from hdm.stage_work import OutputStep
from hdm.statistics import Share
from hdm.store import Identity, Output, Store

pytestmark = pytest.mark.usefixtures("prefect_server")

TEXT = """\
pipelines:
  mine:
    components: {folder: demo}
    download: {kind: scenes}
    train:
      model: {text_width: 128, channels: 8}
      phases: [{resolution: 64, num_images: 100, batch_size: 10}]
labs:
  small:
    pipeline: mine
    seeds: 2
    comparisons:
      crop: {settings: {shifted: {}, centre: {train.crop: centre}}}
      contrastive: {settings: {without: {}, with: {train.contrastive_weight: 0.05}}}
"""


class Trainings:
    """Data, training and evaluation of a pipeline that take no time; the held-out loss is 1, less
    0.25 with the contrastive term.
    """

    def __init__(self) -> None:
        self.made: list[str] = []
        self.fails = lambda pipeline: False

    def steps(self, pipeline: Pipeline) -> list[OutputStep[Pipeline]]:
        names = ("download", "train.64px", "evaluate.accuracy")
        return [
            OutputStep(
                name, names[place - 1 : place] if place else (), self.identify(name), self.make
            )
            for place, name in enumerate(names)
        ]

    def identify(self, name: str) -> Any:
        def identity(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
            train = pipeline.train
            config = (
                {}
                if name == "download"
                else {"seed": train.seed, "crop": train.crop, "weight": train.contrastive_weight}
            )
            return Identity(name, 1, config, dict(inputs))

        return identity

    def make(
        self, pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store
    ) -> Output:
        if identity.name == "train.64px" and self.fails(pipeline):
            raise InputError("no such picture")
        with store.draft(identity) as draft:
            self.made.append(
                " ".join([identity.name, *(str(value) for value in identity.config.values())])
            )
            loss = 1 - 5 * pipeline.train.contrastive_weight
            with draft.write("metrics.jsonl") as file:
                lines = [
                    {"num_images_seen": seen, "validation_loss": loss + 1 - seen / 100}
                    for seen in (50, 100)
                ]
                file.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
                file.counts["images_seen"] = 100
            scores = {
                name: asdict(Score.of_share(name, Share(4, 8))) for name in ("colour", "kind")
            }
            draft.write_json("scores.json", {"scores": scores, "tables": [], "notes": []})
            draft.write_json("details.json", {"marks": {}})
            return draft.commit()


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainings:
    found = Trainings()
    file = tmp_path / "pipelines.yaml"
    file.write_text(TEXT)
    for name, value in {
        "HDM_STORE": str(tmp_path),
        "HDM_PIPELINES": str(file),
        "HDM_TRACKING": "off",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stages, "steps", found.steps)
    # Its steps are not those of a training: tests/lab times real ones.
    monkeypatch.setattr(
        lab_folder,
        "measure_costs",
        lambda pipelines, store: {name: Cost(((0.0, 1.0),)) for name in pipelines},
    )
    return found


def rows(root: Path) -> dict[str, Any]:
    return {
        row["setting"]: row
        for row in json.loads((root / "reports/lab-small/table.json").read_bytes())["rows"]
    }


def test_every_cell_is_trained_once_and_found_again(trainings: Trainings, tmp_path: Path) -> None:
    first = deployed.compare_settings("small", return_state=True)
    cells = [
        f"{seed} {rest}"
        for seed in (0, 1)
        for rest in ("shifted 0.0", "centre 0.0", "shifted 0.05")
    ]
    assert trainings.made == [
        "download",
        *(f"{stage} {cell}" for cell in cells for stage in ("train.64px", "evaluate.accuracy")),
    ]
    assert [record.name for record in first.result()][:3] == [
        "baseline seed 0",
        "crop/centre seed 0",
        "contrastive/with seed 0",
    ]
    found = rows(tmp_path)
    assert found["with"]["loss_at_equal_samples"]["mean"] == pytest.approx(-0.25)
    assert found["centre"]["loss_at_equal_samples"]["mean"] == 0
    assert found["centre"]["scores_at_equal_samples"]["colour"]["mean"] == 0
    assert (
        "| contrastive | without | 2 | 100 | 1.00 × | 1.0000 |"
        in (tmp_path / "reports/lab-small/table.md").read_text()
    )
    assert (tmp_path / "reports/lab-small/losses.svg").read_text().startswith("<svg")

    made = len(trainings.made)
    shutil.rmtree(tmp_path / "download")
    assert deployed.compare_settings("small", return_state=True).name == "UpToDate"
    assert len(trainings.made) == made, "nor is data made again of which nothing is trained"
    deployed.compare_settings("small", seeds=3)
    assert len(trainings.made) == made + 7, (
        "a third seed adds its three cells and the data that they need, once"
    )


def test_a_cell_that_fails_is_named_and_the_others_go_on(
    trainings: Trainings, tmp_path: Path
) -> None:
    trainings.fails = lambda pipeline: pipeline.train.crop == "centre" and pipeline.train.seed == 0
    error = deployed.compare_settings("small", return_state=True).result(raise_on_failure=False)
    assert isinstance(error, HdmError)
    assert "1 of 6 cells failed" in error.what
    assert "crop/centre seed 0: no such picture" in error.what
    assert len([name for name in trainings.made if name.startswith("evaluate")]) == 5
    assert rows(tmp_path)["centre"]["num_seeds"] == 1

    trainings.fails = lambda pipeline: False
    assert [record.name for record in deployed.compare_settings("small") if not record.cached] == [
        "crop/centre seed 0"
    ]


def test_a_signal_stops_the_lab_and_not_only_its_cell(trainings: Trainings) -> None:
    def stop(pipeline: Pipeline) -> bool:
        if pipeline.train.crop == "centre":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        return False

    trainings.fails = stop
    assert deployed.compare_settings("small", return_state=True).is_cancelled()
    assert trainings.made == [
        "download",
        "train.64px 0 shifted 0.0",
        "evaluate.accuracy 0 shifted 0.0",
    ]


def test_a_cell_that_cannot_work_is_told_before_any_is_trained(trainings: Trainings) -> None:
    overrides = ["evaluate.size=50x50"]
    error = deployed.compare_settings("small", overrides=overrides, return_state=True).result(
        raise_on_failure=False
    )
    assert isinstance(error, InputError)
    assert "take 48x48 or 64x64" in error.what or "take 48x48 or 64x64" in str(error.do)
    assert trainings.made == []
