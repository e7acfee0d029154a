"""Comparing runs: what is found of known ones, what is refused, and the page."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from hdm.errors import DamagedError, InputError
from hdm.evaluation.compared_runs import MeasuredRun, images_made_from, measured_outputs, read_run
from hdm.evaluation.comparison import Comparison, Difference, compare, judged
from hdm.evaluation.comparison_page import write_comparison
from hdm.last_runs import LastRun, remember
from hdm.scoring.metrics import read_finding
from tests.evaluation.conftest import Gallery
from tests.evaluation.made_runs import made_runs
from tests.evaluation.test_report import Page

KINDS = {
    "mean": "prompts.clip_score",
    "kernel": "distances.kernel",
    "frechet": "distances.frechet",
}


def by_name(comparison: Comparison) -> dict[str, Difference]:
    return {one.name: one for one in comparison.differences}


def asked(first: MeasuredRun, second: MeasuredRun) -> Comparison:
    return judged([compare(first, second)])[0]


@pytest.fixture(scope="module")
def both(
    gallery: Gallery, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MeasuredRun, MeasuredRun]:
    """The gallery's run, and one that samples in a single step."""
    gallery.evaluate()
    other = gallery.changed(tmp_path_factory.mktemp("other"), steps=1)
    other.evaluate()
    return read_run("two", gallery.generate()), read_run("one", other.generate())


def test_differences_are_those_of_pictures_of_equal_prompts(both, gallery):
    first, second = both
    found = by_name(asked(first, second))
    marks = read_finding(gallery.measure("accuracy")).marks["one_object"]
    assert first.sets["one_object"].shares["colour"] == [mark["colour"] for mark in marks]
    for name in ("one_object.colour", "one_object.all", "held_out.clip_score"):
        set_name, measure = name.split(".")
        values = []
        for run in (first, second):
            measured = run.sets[set_name]
            of_run = {**measured.shares, **measured.numbers}[measure]
            values.append(np.array(of_run, float))
        assert found[name].first == pytest.approx(values[0].mean())
        assert found[name].second == pytest.approx(values[1].mean())
        assert found[name].apart.value == pytest.approx((values[1] - values[0]).mean())
        assert found[name].num_pairs == len(first.sets[set_name].asked)
    prompts = {" ".join(prompt.lower().split()) for prompt, _ in first.sets["one_object"].asked}
    assert found["one_object.colour"].apart.distinct == len(prompts)
    assert "distances.kernel" in found
    assert "distances.frechet" not in found


def test_what_was_left_out_is_said(both):
    notes = " ".join(asked(*both).notes)
    assert "It needs more pictures than dimensions" in notes
    assert "they need 31 captions" in notes


def test_the_page_stands_alone_and_shows_the_same_prompts(both, tmp_path):
    comparison = asked(*both)
    path = write_comparison([comparison, comparison], tmp_path / "page")
    page = Page(path.read_text())
    assert page.open == []
    assert page.fetched == []
    text = " ".join(page.text)
    for one in comparison.differences:
        assert one.sentence in text
    prompt, _ = both[0].sets["two_objects"].asked[0]
    assert prompt in text
    # Twelve prompts of each set, of fewer all; three runs each.
    assert len(page.images) == 3 * sum(min(12, len(pairs)) for pairs in comparison.pairs.values())
    assert "evaluate.steps" in text
    facts = json.loads((path.parent / "compare.json").read_bytes())
    told = facts["comparisons"][0]["differences"]
    assert [one["verdict"] for one in told] == [one.verdict for one in comparison.differences]
    assert {"estimator", "num_pairs", "low", "high", "direction"} <= told[0].keys()


def test_a_run_is_found_by_its_training_with_all_that_was_measured(gallery):
    gallery.evaluate()
    images = gallery.generate()
    trained = gallery.inputs["train.16px"]
    found = images_made_from(gallery.store.root, trained.digest)
    assert found is not None
    assert found.digest == images.digest
    assert {"evaluate.embeddings", "evaluate.accuracy", "evaluate.likeness"} <= set(
        measured_outputs(images)
    )


def test_pictures_of_other_prompts_are_not_compared(both, gallery, tmp_path):
    other = gallery.changed(tmp_path, seed=5000, num_images=3)
    run = read_run("other", other.generate())
    with pytest.raises(InputError, match="no prompt with the same seed in common: two begins with"):
        compare(both[0], run)
    with pytest.raises(InputError, match="the same pictures"):
        compare(both[0], replace(both[0], name="again"))


def test_prompts_that_only_one_has_are_counted(both):
    first, second = both
    measured = second.sets["one_object"]
    fewer = replace(
        measured,
        asked=measured.asked[10:],
        shares={name: values[10:] for name, values in measured.shares.items()},
        numbers={name: values[10:] for name, values in measured.numbers.items()},
    )
    found = asked(first, replace(second, sets={**second.sets, "one_object": fewer}))
    assert f"{measured.title}: 60 of 70 pictures are of equal prompts." in found.notes
    colour = by_name(found)["one_object.colour"]
    assert colour.num_pairs == 60
    assert colour.first == np.mean(first.sets["one_object"].shares["colour"][10:])


def test_missing_pictures_are_said(gallery, tmp_path):
    images = gallery.generate()
    folder = tmp_path / "evaluate.images" / images.digest
    shutil.copytree(images.path, folder)
    (folder / "one_object-00001.tar").unlink()
    with pytest.raises(DamagedError, match="pictures of mine are missing or damaged"):
        read_run("mine", replace(images, path=folder))


def test_a_reference_of_one_picture_measures_no_distance():
    first, second = made_runs(0)
    alone = []
    for run in (first, second):
        assert run.compared is not None
        sides = {name: getattr(run.compared, name)[:1] for name in ("generated", "real")}
        few = replace(
            run.compared,
            **sides,
            reference=run.compared.reference[:1],
            captions=["prompt"],
            reference_captions=["other"],
        )
        alone.append(replace(run, compared=few))
    found = compare(*alone)
    assert all(one.group == "Prompts" for one in found.differences)
    assert "1 to compare with on either side" in " ".join(found.notes)


def test_other_real_pictures_measure_no_distance():
    first, second = made_runs(0)
    assert second.compared is not None
    moved = replace(second.compared, reference=second.compared.reference + 1)
    found = compare(first, replace(second, compared=moved))
    assert all(one.group == "Prompts" for one in found.differences)
    assert "compared with different pictures" in " ".join(found.notes)
    without = compare(first, replace(second, compared=None))
    assert "for lack of embeddings: second" in " ".join(without.notes)


def test_equal_runs_raise_few_false_alarms():
    """Among 40 comparisons 5 % would be two."""
    alarms = 0
    for seed in range(40):
        comparison = asked(*made_runs(seed))
        alarms += comparison.count("better") + comparison.count("worse") > 0
    assert alarms <= 6


def test_a_difference_of_twice_the_detectable_size_is_found():
    pilot = by_name(asked(*made_runs(1000, distances=False)))
    step = 2 * (pilot[KINDS["mean"]].apart.detectable(pilot[KINDS["mean"]].num_questions) or 0)
    found = 0
    for seed in range(30):
        one = by_name(asked(*made_runs(seed, better=step, distances=False)))[KINDS["mean"]]
        found += one.verdict == "better"
    assert found >= 24


def test_a_distance_that_grows_is_worse():
    found = by_name(asked(*made_runs(0, farther=1.0)))
    for name in ("kernel", "frechet"):
        one = found[KINDS[name]]
        assert one.direction == "lower"
        assert one.apart.value > 0
        assert one.verdict == "worse"
        assert one.floor is not None
        assert one.floor < one.first < one.second


def test_a_frechet_distance_that_is_mostly_bias_gets_no_verdict():
    near: list[MeasuredRun] = []
    for run in made_runs(0, num_prompts=20):
        assert run.compared is not None
        noise = 0.01 * np.random.default_rng(len(near)).normal(size=run.compared.real.shape)
        near.append(
            replace(run, compared=replace(run.compared, generated=run.compared.real + noise))
        )
    one = by_name(asked(*near))[KINDS["frechet"]]
    assert one.verdict == "not judged"
    assert one.sentence.startswith("mostly bias")
    assert one.p_holm is None


def test_how_many_prompts_would_be_needed_is_about_right():
    """With as many as it says, most of other runs show the difference."""
    comparison = asked(*made_runs(1, better=0.2, distances=False))
    one = by_name(comparison)[KINDS["mean"]]
    assert one.verdict == "no difference shown"
    needed = one.apart.needed(one.num_questions)
    assert needed is not None
    assert f"with 120 prompts; about {float(f'{needed:.1e}'):,.0f} would be needed" in one.sentence
    truly = abs(one.apart.value)
    found = 0
    for seed in range(20):
        again = asked(*made_runs(seed, better=truly, num_prompts=needed, distances=False))
        found += by_name(again)[KINDS["mean"]].verdict == "better"
    assert 10 <= found <= 20


def hdm(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, words)))
    return result.exit_code, result.stdout, result.stderr


def test_the_command_compares_folders_and_writes_the_page(both, tmp_path):
    folders = [run.images.path for run in both]
    code, told, page = hdm("compare", *folders, "--out", tmp_path / "page", "--json")
    assert code == 0, page
    assert page.strip().endswith("compare.html")
    facts = json.loads(told)
    names = [one["name"] for one in facts["runs"]]
    assert names == [f"images {run.images.digest[:6]}" for run in both]
    wanted = asked(*both)
    (found,) = facts["comparisons"]
    assert [one["sentence"] for one in found["differences"]] == [
        one.sentence for one in wanted.differences
    ]
    assert json.loads((tmp_path / "page" / "compare.json").read_bytes()) == facts
    code, told, _ = hdm("compare", *folders, "--store", tmp_path)
    assert code == 0
    assert "better in" in told
    assert "compare checkpoints, not methods" in told
    assert len(list(tmp_path.glob("reports/compare/*/compare.html"))) == 1


def test_the_command_finds_the_pictures_of_a_training_and_of_a_pipeline(both, gallery):
    root = gallery.store.root
    images = both[0].images
    run = LastRun("mine", 1.0, {"evaluate.images": images.digest, "evaluate.later": None})
    remember(root, run)
    trained = gallery.inputs["train.16px"]
    for words in (("mine", both[1].images.path), (trained.path, both[1].images.path)):
        code, told, said = hdm("compare", *words, "--json", "--store", root)
        assert code == 0, said
        assert json.loads(told)["runs"][0]["images"] == images.digest


def test_the_command_says_what_it_cannot_compare(both, gallery, tmp_path):
    images = both[0].images.path
    for words, wanted in [
        ((images,), "one run is nothing to compare"),
        ((images, "nobody"), "there is no run 'nobody'"),
        ((images, tmp_path), "this folder holds no finished output"),
        ((images, gallery.inputs["download"].path), "no pictures were generated from download"),
        ((images, images), "are the same pictures"),
    ]:
        code, _, said = hdm("compare", *words, "--store", tmp_path)
        assert code == 2, said
        assert wanted in " ".join(said.split())
    remember(tmp_path, LastRun("begun", 1.0, {"evaluate.images": None}))
    code, _, said = hdm("compare", images, "begum", "--store", tmp_path)
    assert "did you mean begun" in " ".join(said.split())
    code, _, said = hdm("compare", images, "begun", "--store", tmp_path)
    assert code == 2
    assert "no finished pictures" in " ".join(said.split())


def test_a_measure_that_is_the_same_for_each_prompt_makes_no_other_less_sure():
    first, second = made_runs(0, better=0.6, distances=False)
    same = {"idle": np.zeros(len(first.sets["prompts"].asked))}
    alone = asked(first, second)
    with_same = []
    for run in (first, second):
        one = run.sets["prompts"]
        more = replace(one, numbers={**one.numbers, **same})
        with_same.append(replace(run, sets={"prompts": more}))
    found = by_name(asked(*with_same))
    mean = KINDS["mean"]
    assert found[mean].p_holm == by_name(alone)[mean].p_holm
    assert found["prompts.idle"].verdict == "no difference shown"
    assert found["prompts.idle"].sentence.endswith("both have the same for each")
