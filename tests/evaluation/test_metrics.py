"""A metric of one new file and its registration."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hdm.evaluation.metrics import METRICS, Metric, register
from hdm.evaluation.painting import read_set
from hdm.evaluation.report import write_report
from hdm.stages import Step, steps
from hdm.store import Identity, Output
from tests.evaluation.conftest import Gallery
from tests.evaluation.test_report import Made, Page

SOURCE = """
import numpy as np
from hdm.evaluation.metrics import Metric, Score, register
from hdm.evaluation.painting import read_set

VERSION = 1

def measure(pipeline, outputs):
    pictures = read_set(outputs["evaluate.images"].path, "one_object", 70)
    values = [float(picture.mean()) for picture in pictures]
    low, high = min(values), max(values)
    return [Score("mean_level", float(np.mean(values)), low, high, len(values), "higher")]

register(Metric("brightness", ("filter",), lambda pipeline: {"version": VERSION}, measure))
"""


@pytest.fixture
def no_metrics() -> Iterator[None]:
    before = dict(METRICS)
    METRICS.clear()
    yield
    METRICS.clear()
    METRICS.update(before)


def load(path: Path, source: str) -> None:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def step_of(gallery: Gallery, name: str) -> Step:
    return next(step for step in steps(gallery.pipeline) if step.name == name)


def identified(gallery: Gallery, step: Step, outputs: dict[str, Output]) -> Identity:
    digests = {name: outputs[name].digest for name in step.inputs}
    return step.identify(gallery.pipeline, digests)


@pytest.mark.usefixtures("no_metrics")
def test_one_file_adds_a_metric_to_report_and_json_and_generates_nothing(
    gallery: Gallery, tmp_path: Path
) -> None:
    generated, evaluation = gallery.evaluate()
    outputs = {**gallery.inputs, "evaluate.images": generated, "evaluate": evaluation}
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

    METRICS.clear()
    load(tmp_path / "brightness.py", SOURCE.replace("VERSION = 1", "VERSION = 2"))
    changed = identified(gallery, step_of(gallery, "evaluate.brightness"), outputs)
    assert changed.digest != identity.digest


def test_another_contrastive_model_measures_again_and_generates_nothing(gallery: Gallery) -> None:
    outputs = {**gallery.inputs, "evaluate.images": gallery.generate()}
    components = gallery.pipeline.components.model_copy(update={"contrastive": None})
    without = replace(
        gallery, pipeline=gallery.pipeline.model_copy(update={"components": components})
    )
    before, after = (
        {
            name: identified(one, step_of(one, name), outputs).digest
            for name in ("evaluate.images", "evaluate")
        }
        for one in (gallery, without)
    )
    assert before["evaluate.images"] == after["evaluate.images"]
    assert before["evaluate"] != after["evaluate"]


@pytest.mark.usefixtures("no_metrics")
def test_a_metric_that_needs_what_the_pipeline_does_not_make_is_left_out(gallery: Gallery) -> None:
    register(Metric("meaning", ("filter.contrastive",), lambda _: {}, lambda *_: []))
    components = gallery.pipeline.components.model_copy(update={"contrastive": None})
    without = gallery.pipeline.model_copy(update={"components": components})
    assert "evaluate.meaning" in [step.name for step in steps(gallery.pipeline)]
    assert "evaluate.meaning" not in [step.name for step in steps(without)]


@pytest.mark.usefixtures("no_metrics")
def test_a_metric_that_cannot_work_is_refused() -> None:
    register(Metric("sharpness", (), lambda _: {}, lambda *_: []))
    with pytest.raises(ValueError, match="registered already"):
        register(Metric("sharpness", (), lambda _: {}, lambda *_: []))
    with pytest.raises(ValueError, match="needs \\['train'\\]"):
        register(Metric("other", ("train",), lambda _: {}, lambda *_: []))
