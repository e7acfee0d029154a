"""A criterion that somebody adds: one new file that registers it, and nothing else."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hdm.config import Pipeline
from hdm.curation import criteria
from hdm.curation.embed import read_embeddings
from hdm.curation.outputs import filter_outputs
from hdm.curation.settings import FilterSettings, TopFraction
from hdm.data.tables import read_tables
from hdm.errors import ConfigError
from hdm.evaluation import exhibits
from hdm.models.components import resolve
from hdm.models.contrastive import load_contrastive
from hdm.models.settings import Components
from hdm.pictures.decoding import Decoders
from hdm.pipelines import load_pipeline
from hdm.planning.hardware import card
from hdm.planning.plan import Question, make_plan
from hdm.store import Output, Store
from tests.curation.conftest import png, run
from tests.curation.test_measure import digests, scene
from tests.models.conftest import coca_folder, tokenizer_folder  # noqa: F401

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
    before, first = made(download, store, Pipeline(threads=1))
    assert first == ["filter.measures", "filter"]
    limit = max(float(pictures[0].mean()), float(pictures[2].mean())) + 1
    strict = Pipeline(threads=1, filter=FilterSettings(limits={"brightness": limit}))
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
        told = {shown.explanation: shown.count for shown in exhibition.rejections(1)}
    assert told["too bright"] == 1

    _, third = made(
        download, store, Pipeline(threads=1, filter=FilterSettings(limits={"brightness": 255.0}))
    )
    assert third == ["filter"]


def test_pictures_are_ranked_by_an_added_criterion_without_a_limit_of_it(
    brightness, store, make_download
):
    shades = [40, 10, 30, 20]
    pictures = [scene(number) // 8 + shade for number, shade in enumerate(shades)]
    download = make_download([(png(one), None) for one in pictures])
    top = TopFraction(by="brightness", keep=0.5)
    outputs, new = made(
        download, store, Pipeline(threads=1, filter=FilterSettings(top_fraction=top))
    )
    assert new == ["filter.measures", "filter"]  # the brightness comes of the same decoding
    assert "filter.brightness" in outputs
    reasons = read_tables(outputs["filter"], "scores")["reason"].to_pylist()
    # Its bound is the most that passes, so the darkest are the best.
    brightest = sorted(range(4), key=lambda number: pictures[number].mean())[2:]
    expected = ["top_fraction" if number in brightest else None for number in range(4)]
    assert reasons == expected


def test_an_unknown_score_to_rank_by_is_refused(brightness):
    top = TopFraction(by="brihgtness")
    pipeline = Pipeline(threads=1, filter=FilterSettings(top_fraction=top))
    *_, decision = filter_outputs(pipeline)
    with pytest.raises(ConfigError, match="not ranked by 'brihgtness'") as caught:
        decision.identify(pipeline, {})
    assert "sharpness" in str(caught.value.do)
    assert "brightness" in str(caught.value.do)


def test_an_added_criterion_is_planned(brightness, tmp_path):
    pipeline = load_pipeline("demo", ["filter.limits={brightness: 200}"], environment={})
    plan = make_plan(Question(pipeline, Store(tmp_path), card("cpu")))
    rows = {row.name: row for row in plan.rows}
    assert rows["filter.brightness"].items == rows["filter.measures"].items > 0
    assert 0 < rows["filter.brightness"].bytes < rows["filter.measures"].bytes
    assert "the work of filter.brightness is not counted" in plan.notes


def test_switching_on_a_model_measures_with_that_model_alone(
    store,
    make_download,
    coca_folder,  # noqa: F811
    tmp_path,
):
    download = make_download([(png(scene(index)), "a red circle") for index in range(3)])
    before, first = made(download, store, Pipeline(threads=1))
    assert first == ["filter.measures", "filter"]

    named = Components(contrastive=str(coca_folder))
    similar, second = made(download, store, Pipeline(threads=1, components=named))
    assert second == ["filter.contrastive", "filter"]
    assert similar["filter.measures"].digest == before["filter.measures"].digest

    embed_size = read_embeddings(similar["filter.contrastive"])[1].shape[1]
    weight = torch.linspace(-1, 1, embed_size)[None]
    torch.save({"weight": weight, "bias": torch.zeros(1)}, tmp_path / "head.pth")
    for tar in download.paths(".tar"):
        tar.unlink()  # whoever decodes a picture fails
    both = Components(
        contrastive=str(coca_folder),
        aesthetic_head=str(tmp_path / "head.pth"),
        aesthetic_head_for=str(coca_folder),
    )
    rated, third = made(download, store, Pipeline(threads=1, components=both))
    assert third == ["filter.aesthetic", "filter"]
    for name in ("filter.measures", "filter.contrastive"):
        assert rated[name].digest == similar[name].digest
    scores = read_tables(rated["filter"], "scores")["aesthetic"].to_pylist()
    model = load_contrastive(resolve(both))
    own = model.embed_images([scene(index) for index in range(3)]) @ weight[0].numpy()
    assert scores == pytest.approx(own.tolist(), abs=1e-5)


def test_what_is_missing_at_once_is_made_from_one_decoding_and_is_what_each_is_alone(
    brightness,
    store,
    make_download,
    coca_folder,  # noqa: F811
    monkeypatch,
):
    # Two are large enough to be reduced for models, one is broken.
    pictures = [scene(1), np.tile(scene(2), (26, 26, 1)), scene(3)]
    download = make_download(
        [(png(one), "a red circle") for one in pictures], [(b"broken", None), (png(scene(4)), None)]
    )
    pipeline = Pipeline(
        threads=1,
        components=Components(contrastive=str(coca_folder)),
        filter=FilterSettings(limits={"brightness": 255.0}),
    )
    outputs = filter_outputs(pipeline)[:-1]
    names = ["filter.measures", "filter.contrastive", "filter.brightness"]
    assert [output.name for output in outputs] == names
    alone = {}
    for output in outputs:
        assert isinstance(output.make, partial)
        elsewhere = Store(store.root.with_name(output.name))
        one = run(
            replace(output, make=output.make.func), pipeline, {"download": download}, elsewhere
        )
        alone[output.name] = digests(one)

    decoded, asked = [], Decoders.ask

    def counted(self, name, data, **options):
        decoded.append(name)
        return asked(self, name, data, **options)

    monkeypatch.setattr(Decoders, "ask", counted)
    together, _ = made(download, store, pipeline)
    assert {name: digests(together[name]) for name in names} == alone
    assert len(decoded) == len(set(decoded)) == 5

    # What is damaged is made again alone.
    decoded.clear()
    (together["filter.contrastive"].path / "embeddings-00001.parquet").unlink()
    again, _ = made(download, store, pipeline)
    assert {name: digests(again[name]) for name in names} == alone
    assert len(decoded) == 2


def test_a_limit_of_an_unknown_criterion_is_refused():
    pipeline = Pipeline(threads=1, filter=FilterSettings(limits={"brihgtness": 3.0}))
    *_, decision = filter_outputs(pipeline)
    with pytest.raises(ConfigError, match="no criterion 'brihgtness'"):
        decision.identify(pipeline, {})
