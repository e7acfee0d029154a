"""A metric of one new file and its registration."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hdm.config import Pipeline
from hdm.evaluation.painting import read_prompts_of, read_set
from hdm.evaluation.report import write_report
from hdm.scoring import judges
from hdm.scoring.metrics import METRICS, Measured, Metric, read_finding, register
from hdm.stage_work import OutputStep
from hdm.stages import steps
from hdm.store import Identity, Output
from tests.evaluation.conftest import Gallery
from tests.evaluation.test_report import Made, Page

SOURCE = """
import numpy as np
from hdm.scoring.metrics import Measured, Metric, Score, register
from hdm.evaluation.painting import read_set

VERSION = 1

def measure(pipeline, outputs):
    pictures = read_set(outputs["evaluate.images"].path, "one_object", 70)
    values = [float(picture.mean()) for picture in pictures]
    low, high = min(values), max(values)
    score = Score("mean_level", float(np.mean(values)), low, high, len(values), "higher")
    return Measured([score])

NEEDS = ("evaluate.images", "filter")
register(Metric("brightness", NEEDS, lambda pipeline: {"version": VERSION}, measure))
"""
JUDGE = """
from hdm.scoring.judges import PromptSet, register

class Brightness:
    questions = ("bright",)

    def identify(self):
        return {"version": 1}

    def prompt_sets(self, num_images, seed):
        asked = tuple(number % 2 == 0 for number in range(num_images))
        texts = tuple("bright" if one else "dark" for one in asked)
        return [PromptSet("levels", texts, asked=asked, headline=("bright",))]

    def score(self, asked, pixels):
        return {"bright": bool((pixels.mean() > 128) == asked)}

    def agreement(self):
        return {}

register("levels", lambda pipeline: Brightness())
"""


QUESTIONNAIRE = """
from hdm.scoring.judges import PromptSet, register_questionnaire

class Weather:
    def __init__(self, version):
        self.version = version

    def identify(self):
        return {"version": self.version}

    def prompt_sets(self, num_images, seed):
        choices = ("rain", "snow")
        texts = tuple(choices[number % 2] for number in range(num_images))
        return [PromptSet("weather", texts, choices=(choices,) * num_images)]

register_questionnaire("weather", lambda pipeline: Weather(VERSION))
"""


@pytest.fixture
def as_before() -> Iterator[None]:
    """Metrics and judges that a test registers are gone after it."""
    metrics, known = dict(METRICS), dict(judges.JUDGES)
    asked = dict(judges.QUESTIONNAIRES)
    yield
    METRICS.clear()
    METRICS.update(metrics)
    judges.JUDGES.clear()
    judges.JUDGES.update(known)
    judges.QUESTIONNAIRES.clear()
    judges.QUESTIONNAIRES.update(asked)


def load(path: Path, source: str) -> None:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def step_of(gallery: Gallery, name: str) -> OutputStep[Pipeline]:
    return next(step for step in steps(gallery.pipeline) if step.name == name)


def identified(
    gallery: Gallery, step: OutputStep[Pipeline], outputs: dict[str, Output]
) -> Identity:
    digests = {name: outputs[name].digest for name in step.inputs}
    return step.identify(gallery.pipeline, digests)


@pytest.mark.usefixtures("as_before")
def test_one_file_adds_a_metric_to_report_and_json_and_generates_nothing(
    gallery: Gallery, tmp_path: Path
) -> None:
    generated, *others = gallery.evaluate()
    outputs = {**gallery.inputs, **{one.name: one for one in (generated, *others)}}
    images = identified(gallery, step_of(gallery, "evaluate.images"), outputs).digest
    assert images == generated.digest
    written = {path: path.stat().st_mtime_ns for path in generated.paths(".tar")}

    load(tmp_path / "brightness.py", SOURCE)
    step = step_of(gallery, "evaluate.brightness")
    assert step.stage == "evaluate"
    assert identified(gallery, step_of(gallery, "evaluate.images"), outputs).digest == images
    identity = identified(gallery, step, outputs)
    inputs = {name: outputs[name] for name in step.inputs}
    output = step.make(gallery.pipeline, identity, inputs, gallery.store)
    assert {path: path.stat().st_mtime_ns for path in generated.paths(".tar")} == written

    page = write_report(
        gallery.pipeline, [Made(one, False) for one in (*outputs.values(), output)], tmp_path
    )
    wanted = float(np.mean(read_set(generated.path, "one_object", 70)))
    facts = json.loads((tmp_path / "report.json").read_bytes())
    score = facts["measured"]["brightness"]["mean_level"]
    assert score["value"] == pytest.approx(wanted)
    assert (score["count"], score["direction"]) == (70, "higher")
    text = Page(page.read_text()).text
    assert "mean level" in text
    assert f"{wanted:.4g}" in text

    del METRICS["brightness"]
    load(tmp_path / "brightness.py", SOURCE.replace("VERSION = 1", "VERSION = 2"))
    changed = identified(gallery, step_of(gallery, "evaluate.brightness"), outputs)
    assert changed.digest != identity.digest


@pytest.mark.usefixtures("as_before")
def test_one_file_adds_a_judge_whose_prompts_are_asked(gallery: Gallery, tmp_path: Path) -> None:
    load(tmp_path / "levels.py", JUDGE)
    asked = gallery.changed(tmp_path / "store", prompts="levels", num_images=4)
    generated = asked.generate()
    assert read_prompts_of(generated.path, "levels", 4) == ["bright", "dark", "bright", "dark"]
    found = read_finding(asked.measure("accuracy"))
    levels = [picture.mean() > 128 for picture in read_set(generated.path, "levels", 4)]
    right = [level == (number % 2 == 0) for number, level in enumerate(levels)]
    assert [mark["bright"] for mark in found.marks["levels"]] == right
    assert found.scores["bright"].value == sum(right) / 4
    assert found.scores["bright"].headline


@pytest.mark.usefixtures("as_before")
def test_one_file_adds_prompts_that_a_person_judges(gallery: Gallery, tmp_path: Path) -> None:
    load(tmp_path / "weather.py", QUESTIONNAIRE.replace("VERSION)", "1)"))
    asked = gallery.changed(tmp_path / "store", prompts="weather", num_images=2)
    generated = asked.generate()
    assert read_prompts_of(generated.path, "weather", 2) == ["rain", "snow"]
    assert (generated.path / "sheet-weather.png").is_file()
    copies = read_finding(asked.measure("copies"))
    entries = copies.details["choices"]["weather"]
    assert [entry["prompt"] for entry in entries] == ["rain", "snow"]
    assert entries[0]["choices"] == ["rain", "snow"]
    names = [step.name for step in steps(asked.pipeline)]
    assert "evaluate.accuracy" not in names

    del judges.QUESTIONNAIRES["weather"]
    load(tmp_path / "weather.py", QUESTIONNAIRE.replace("VERSION)", "2)"))
    assert asked.identity.digest != generated.digest


def test_without_a_contrastive_model_the_same_images_are_measured(gallery: Gallery) -> None:
    components = gallery.pipeline.components.model_copy(update={"contrastive": None})
    pipeline = gallery.pipeline.model_copy(update={"components": components})
    without = replace(gallery, pipeline=pipeline)
    assert without.identity.digest == gallery.identity.digest
    names = [step.name for step in steps(pipeline)]
    assert "evaluate.likeness" not in names
    assert "evaluate.accuracy" in names


@pytest.mark.usefixtures("as_before")
def test_a_metric_that_needs_what_the_pipeline_does_not_make_is_left_out(gallery: Gallery) -> None:
    register(Metric("meaning", ("filter.contrastive",), lambda _: {}, lambda *_: Measured([])))
    components = gallery.pipeline.components.model_copy(update={"contrastive": None})
    without = gallery.pipeline.model_copy(update={"components": components})
    assert "evaluate.meaning" in [step.name for step in steps(gallery.pipeline)]
    assert "evaluate.meaning" not in [step.name for step in steps(without)]


@pytest.mark.usefixtures("as_before")
def test_a_metric_that_cannot_work_is_refused() -> None:
    register(Metric("sharpness", (), lambda _: {}, lambda *_: Measured([])))
    with pytest.raises(ValueError, match="registered already"):
        register(Metric("sharpness", (), lambda _: {}, lambda *_: Measured([])))
    with pytest.raises(ValueError, match="needs \\['train'\\]"):
        register(Metric("other", ("train",), lambda _: {}, lambda *_: Measured([])))
