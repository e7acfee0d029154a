"""A criterion that somebody adds: one new file that registers it, and nothing else."""

import sys
from pathlib import Path

import numpy as np
import pytest

from hdm.config import FilterSettings, Pipeline
from hdm.curation import criteria
from hdm.curation.outputs import filter_outputs
from hdm.data.tables import read_tables
from hdm.errors import ConfigError
from hdm.evaluation import exhibits
from hdm.store import Output, Store
from tests.curation.conftest import png
from tests.curation.test_measure import run, scene

NEW_FILE = """
from hdm.curation.criteria import Criterion, register


def brightness(pictures):
    return [float(picture.pixels.mean()) for picture in pictures]


register(Criterion("brightness", "too bright", bound="max", open=lambda pipeline: brightness))
"""


@pytest.fixture
def brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The new file, imported."""
    (tmp_path / "added_criterion.py").write_text(NEW_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("added_criterion")
    yield
    criteria.unregister("brightness")
    del sys.modules["added_criterion"]


def made(download: Output, store: Store, pipeline: Pipeline) -> tuple[dict[str, Output], list[str]]:
    """All outputs of the stage, and the names of those that the store did not have."""
    outputs, new = {"download": download}, []
    for step in filter_outputs(pipeline):
        inputs = {name: outputs[name] for name in step.inputs}
        identity = step.identify(pipeline, {name: output.digest for name, output in inputs.items()})
        ready = store.find(identity)
        if ready is None:
            new.append(step.name)
        outputs[step.name] = ready or run(step, pipeline, inputs, store)
    return outputs, new


def test_an_added_criterion_decides_is_counted_and_reported_and_measures_alone(
    brightness, store, make_download
):
    white = np.full((64, 64, 3), 250, np.uint8)
    white[::8] = 240
    pictures = [scene(1), white, scene(2)]
    download = make_download([(png(one), None) for one in pictures], [(b"broken", None)])
    before, first = made(download, store, Pipeline())
    assert first == ["filter.measures", "filter"]
    limit = max(float(pictures[0].mean()), float(pictures[2].mean())) + 1
    strict = Pipeline(filter=FilterSettings(limits={"brightness": limit}))
    after, second = made(download, store, strict)
    assert second == ["filter.brightness", "filter"]
    assert after["filter.measures"].digest == before["filter.measures"].digest

    rows = read_tables(after["filter"], "scores").to_pylist()
    reasons = [row["reason"] for row in rows]
    assert reasons == [None, "brightness", None, "undecodable"]
    assert rows[1]["detail"] == f"brightness {white.mean():.3g} over {limit:g}"
    assert rows[1]["brightness"] == pytest.approx(white.mean(), rel=1e-6)
    assert rows[3]["brightness"] is None
    assert after["filter"].counts["rejected_brightness"] == 1
    assert "rejected_brightness" not in before["filter"].counts
    with exhibits.Exhibition(strict, after["download"], after["filter"]) as exhibition:
        told = {shown.told: shown.count for shown in exhibition.rejections(1)}
    assert told["too bright"] == 1

    _, third = made(download, store, Pipeline(filter=FilterSettings(limits={"brightness": 255.0})))
    assert third == ["filter"]


def test_a_limit_of_an_unknown_criterion_is_refused():
    pipeline = Pipeline(filter=FilterSettings(limits={"brihgtness": 3.0}))
    *_, decision = filter_outputs(pipeline)
    with pytest.raises(ConfigError, match="no criterion 'brihgtness'"):
        decision.identify(pipeline, {})
