import io
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from hdm.data.shards import ImageReader
from hdm.data.tables import read_tables
from hdm.distances.frechet import frechet_distance
from hdm.distances.kernel import kernel_distance
from hdm.distances.neighbours import density_and_coverage, precision_and_recall
from hdm.errors import InputError
from hdm.evaluation import density_coverage, likeness, neighbourhoods, precision_recall
from hdm.evaluation.accuracy import accuracy
from hdm.evaluation.contrastive_scores import comparable, frechet_distances, kernel_distances
from hdm.evaluation.embeddings import Embedded, read_embedded, select
from hdm.evaluation.real import embeddings_of, read_real
from hdm.models.components import resolve
from hdm.models.contrastive import load_contrastive
from hdm.pictures.reading import decode
from hdm.scoring.judges import PromptSet
from hdm.scoring.metrics import read_finding
from hdm.statistics import Share
from hdm.store import MANIFEST


@pytest.fixture(scope="module")
def output(gallery):
    """The images."""
    return gallery.generate()


@pytest.fixture(scope="module")
def accuracy_of(gallery):
    """What the judge says of them."""
    return read_finding(gallery.measure("accuracy"))


@pytest.fixture(scope="module")
def likeness_of(gallery):
    """What the contrastive model says of them."""
    return read_finding(gallery.measure("likeness"))


def images_of(output, name):
    """(member's name, picture) of all tars of a set, read with the standard library."""
    found = []
    for path in output.paths(".tar"):
        if path.name.startswith(name):
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    found.append((member.name, Image.open(io.BytesIO(file.read()))))
    return found


def real_pictures(gallery, keys):
    samples = {
        row["key"]: row for row in read_tables(gallery.inputs["download"], "samples").to_pylist()
    }
    shard_of: dict[str, int] = {}
    for number, path in enumerate(gallery.inputs["download"].paths(".tar")):
        with tarfile.open(path) as tar:
            shard_of |= {name.split(".")[0]: number for name in tar.getnames()}
    with ImageReader(gallery.inputs["download"]) as reader:
        return [
            decode(
                reader.read(
                    shard_of[key], *(samples[key][name] for name in ("offset", "bytes", "sha256"))
                ),
                gallery.pipeline.images,
            ).pixels
            for key in keys
        ]


def test_every_prompt_gets_its_image_with_how_it_was_made(gallery, output):
    images = images_of(output, "one_object")
    assert len(images) == 70
    prompts = gallery.judge.prompts("one_object", 70, 0)
    for number, (name, image) in enumerate(images):
        assert name == f"one_object-{number:05d}.png"
        assert image.size == (16, 16)
        assert image.text["prompt"] == prompts[number].text
        told = json.loads(image.text["parameters"])
        assert (told["seed"], told["steps"]) == (number, 2)
        assert told["model"].startswith("train.16px/")
    assert len(images_of(output, "two_objects")) == 17
    grid = Image.open(output.file("grid.png"))
    assert isinstance(grid, PngImageFile)
    assert json.loads(grid.text["prompts"]) == [prompt.text for prompt in prompts[:64]]


def test_grids_show_the_images(output):
    grid = np.asarray(Image.open(output.file("grid.png")))
    images = images_of(output, "one_object")
    assert grid.shape == (8 * 18 - 2, 8 * 18 - 2, 3)
    for place in (0, 9, 63):
        top, left = place // 8 * 18, place % 8 * 18
        assert np.array_equal(grid[top : top + 16, left : left + 16], np.asarray(images[place][1]))


def test_accuracy_counts_the_answers_of_the_judge(gallery, output, accuracy_of):
    marks, scores = accuracy_of.marks, accuracy_of.scores
    prompts = gallery.judge.prompts("one_object", 70, 0)
    pictures = [np.asarray(image) for _, image in images_of(output, "one_object")]
    for question in ("colour", "place", "kind"):
        right = sum(
            gallery.judge.score(prompt, picture)[question]
            for prompt, picture in zip(prompts, pictures, strict=True)
        )
        assert sum(mark[question] for mark in marks["one_object"]) == right
        found, agrees = scores[question], gallery.judge.agreement()[question]
        assert found.value == right / 70
        assert (found.low, found.high) == Share(right, 70, 70).interval
        assert (found.count, found.direction) == (70, "higher")
        assert found.note.endswith(f"on {agrees.value:.0%}")
        assert scores[f"judge_agrees_{question}"].value == agrees.value
    assert scores["free_wordings_all"].count == 23
    assert scores["two_objects_all"].count == 17
    headline = [name for name, score in scores.items() if score.headline]
    assert headline == ["colour", "place", "kind", "free_wordings_kind", "two_objects_kind"]


def test_images_of_one_prompt_count_as_one_in_the_interval():
    texts = [f"prompt {n % 8}" for n in range(80)]
    answers = [{"colour": n % 2 == 0, "place": True, "kind": True} for n in range(80)]
    found = accuracy(texts, answers)["colour"]
    assert (found.right, found.total, found.distinct) == (40, 80, 8)
    assert found.interval == Share(4, 8).interval


def test_the_audit_is_of_this_download_and_sees_no_images(gallery):
    finding = read_finding(gallery.measure("faults"))
    audit = finding.details["audit"]
    scores = read_tables(gallery.inputs["filter"], "scores")
    assert audit["good"]["planted"] == 90
    assert audit["caught"]["planted"] == 18
    kept = sum(scores["kept"].to_pylist())
    bad_kept = sum(fault["reasons"].get("kept", 0) for fault in audit["faults"].values())
    assert audit["good"]["kept"] == kept - bad_kept
    assert finding.scores["good_kept"].value == audit["good"]["kept"] / 90
    assert finding.scores["faults_caught"].value == audit["caught"]["caught"] / 18
    assert not finding.sees_images


def test_clip_scores_and_distances_are_those_of_the_pictures(gallery, output, likeness_of):
    metrics, real = likeness_of.details, json.loads(output.file("sets.json").read_bytes())["real"]
    contrastive = load_contrastive(resolve(gallery.pipeline.components))
    rows = read_tables(gallery.inputs["filter"], "scores").to_pylist()
    captions = {
        row["key"]: row["caption"]
        for row in reversed(read_tables(gallery.inputs["caption"], "captions").to_pylist())
    }

    def fits(row, split):
        return row["split"] == split and (
            not real["same_shape"] or 0.8 <= row["width"] / row["height"] <= 1.25
        )

    compared, reference = (
        read_real(gallery.inputs, 1.0, 70).compared,
        read_real(gallery.inputs, 1.0, 70).reference,
    )
    held = list(compared)
    held += sorted(
        row["key"] for row in rows if fits(row, "held_out") and row["key"] not in compared
    )
    assert real["count"] == len(held) > 5

    images = contrastive.embed_images(
        [np.asarray(image) for _, image in images_of(output, "held_out")]
    )
    texts = contrastive.embed_texts([captions[key] for key in held])
    pictures = contrastive.embed_images(real_pictures(gallery, held))
    scores = metrics["clip_score"]["held_out"]
    assert len(images) == len(held)
    assert scores["generated"]["value"] == pytest.approx((images * texts).sum(1).mean(), abs=1e-4)
    assert scores["real"]["value"] == pytest.approx((pictures * texts).sum(1).mean(), abs=1e-3)

    # Images of some captions, and the pictures of these captions, from as many pictures of others.
    assert len(compared) == len(reference) > 2
    assert not {captions[key] for key in compared} & {captions[key] for key in reference}
    others = contrastive.embed_images(real_pictures(gallery, reference))
    same, count = contrastive.embed_images(real_pictures(gallery, compared)), len(compared)
    found = metrics["distances"]
    assert found["num_compared"] == count
    asked, others_asked = [captions[key] for key in compared], [captions[key] for key in reference]
    for kind, rows in (("generated", images[:count]), ("real", same)):
        wanted = kernel_distance([rows], others, asked, others_asked)
        assert found["kernel"][kind]["value"] == pytest.approx(wanted.value, rel=0.01, abs=1e-3)
    # A model that has learnt nothing is farther from real pictures than these are from each other.
    assert likeness_of.scores["clip_score_held_out"].value == scores["generated"]["value"]
    assert likeness_of.scores["clip_score_real"].value == scores["real"]["value"]
    for kind, suffix in (("generated", ""), ("real", "_real")):
        score, told = likeness_of.scores[f"kernel_distance{suffix}"], found["kernel"][kind]
        assert (score.value, score.low, score.high) == (told["value"], told["low"], told["high"])
        assert (score.count, score.direction) == (count, "lower")
        assert score.estimator == told["estimator"] != ""
    assert found["kernel"]["difference"]["low"] > 0
    # There are fewer pictures than dimensions: a Fréchet distance would say nothing.
    assert count <= found["embed_size"]
    assert "frechet" not in found
    assert "frechet_distance" not in likeness_of.scores
    assert f"needs more than {found['embed_size']} pictures" in likeness_of.tables[1]["rows"][0]


def test_a_judge_that_chose_the_training_pictures_is_told(gallery):
    def told(least):
        chosen = gallery.pipeline.filter.model_copy(update={"min_clip_similarity": least})
        pipeline = gallery.pipeline.model_copy(update={"filter": chosen})
        return " ".join(likeness.measure(pipeline, gallery.seen()).notes)

    assert "no independent judge" in told(0.2)
    assert "no independent judge" not in told(None)


def test_copies_of_the_very_pictures_are_no_nearer_than_these(gallery):
    """What a model that knows its pictures by heart would score: what real ones do, and not a
    seventh of it.
    """
    found = kernel_distances(by_heart(gallery))
    assert found.generated == found.real
    assert (found.difference.value, found.difference.error) == (0, 0)
    assert found.real.error


def by_heart(gallery):
    """What is compared, if the generated images were the real pictures themselves."""
    real, measures = read_real(gallery.inputs, 1.0, 70), gallery.inputs["filter.contrastive"]
    keys = tuple(real.captions)
    prompts = PromptSet("held_out", tuple(real.captions.values()), keys=keys)
    return select(measures, real, prompts, embeddings_of(measures, list(keys)))


def test_a_frechet_distance_stands_beside_its_floor_where_there_are_enough_pictures(gallery):
    compared = by_heart(gallery)
    rng = np.random.default_rng(0)
    # In few enough dimensions, with images that are far off, or as near as real pictures are.
    few = {name: rng.normal(size=(80, 8)) for name in ("real", "reference")}
    asked = {"captions": list(map(str, range(80))), "reference_captions": list("ab" * 40)}
    near = replace(compared, **few, **asked, generated=few["real"] + rng.normal(0, 0.1, (80, 8)))
    far = replace(near, generated=5 + rng.normal(size=(80, 8)))
    of_near, of_far = frechet_distances(near), frechet_distances(far)
    assert of_near is not None
    assert of_far is not None
    assert of_near.is_mostly_bias
    assert not of_far.is_mostly_bias
    assert of_far.real == of_near.real
    assert of_far.generated.value == pytest.approx(frechet_distance(far.generated, far.reference))
    few = replace(
        near, **{name: rows[:8] for name, rows in few.items()}, generated=rng.normal(size=(8, 8))
    )
    assert frechet_distances(few) is None


@pytest.mark.parametrize(
    ("metric", "numbers", "k"),
    [(precision_recall, precision_and_recall, 3), (density_coverage, density_and_coverage, 5)],
)
def test_images_and_real_pictures_are_measured_against_the_same_reference(
    gallery, monkeypatch, metric, numbers, k
):
    found = read_finding(gallery.measure(metric.METRIC.name))
    assert not found.scores
    assert found.notes == ["Too few pictures: this needs 31 different captions on either side."]

    rng = np.random.default_rng(0)
    sides = {name: rng.normal(size=(60, 8)) for name in ("generated", "real", "reference")}
    asked = list(map(str, range(60)))
    enough = replace(by_heart(gallery), **sides, captions=asked, reference_captions=asked)
    monkeypatch.setattr(neighbourhoods, "read_embedded", lambda _: Embedded({}, enough))
    scores = metric.measure(gallery.pipeline, gallery.seen()).scores
    told = {score.name: score for score in scores}
    assert len(told) == 4
    for suffix, rows in (("", enough.generated), ("_real", enough.real)):
        for name, wanted in numbers(rows, enough.reference, asked, asked, k).items():
            score = told[f"{name}{suffix}"]
            assert score.value == wanted.value
            assert (score.count, score.direction) == (60, "higher")
            assert score.low < score.value <= score.high
            assert not score.is_share or score.high <= 1


def test_what_is_compared_is_in_the_embeddings(gallery):
    embedded = read_embedded(gallery.seen()["evaluate.embeddings"])
    wanted = by_heart(gallery)
    assert embedded.compared is not None
    assert np.array_equal(embedded.compared.reference, wanted.reference)
    assert np.array_equal(embedded.compared.real, wanted.real)
    assert list(embedded.compared.captions) == list(wanted.captions)
    assert {name: len(rows.prompts) for name, rows in embedded.sets.items()} == {
        "one_object": 70,
        "free_wordings": 23,
        "two_objects": 17,
        "held_out": len(read_real(gallery.inputs, 1.0, 70).captions),
    }


def test_pictures_of_one_caption_are_not_compared(gallery):
    compared = by_heart(gallery)
    assert comparable(compared)
    assert not comparable(replace(compared, captions=["a picture"] * len(compared.captions)))
    assert not comparable(None)


def test_an_interrupted_evaluation_ends_in_the_same_bytes(gallery, output, tmp_path):
    again = gallery.changed(tmp_path / "store")
    folder = again.store.folder(again.identity)
    shutil.copytree(output.path, folder)
    for name in (MANIFEST, "one_object-00001.tar", "grid.png"):
        (folder / name).unlink()
    resumed = again.generate()
    assert resumed.files == output.files
    assert (resumed.path / MANIFEST).read_bytes() == (output.path / MANIFEST).read_bytes()


def test_the_batch_size_is_no_part_of_the_result(gallery, output, tmp_path):
    other = gallery.changed(tmp_path / "store", batch_size=7)
    assert other.identity.digest == gallery.identity.digest
    images = [np.asarray(image, int) for _, image in images_of(other.generate(), "one_object")]
    for (_, image), same in zip(images_of(output, "one_object"), images, strict=True):
        assert np.abs(np.asarray(image, int) - same).max() <= 1


def test_prompts_of_a_file_in_another_shape(gallery, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "red circle"}\n\n{"caption": "blue square"}\n')
    settings = {"prompts": str(file), "num_images": 5, "size": "32x16"}
    other = gallery.changed(tmp_path / "store", **settings)
    digest = other.identity.digest
    images = images_of(other.generate(), "prompts")
    assert [image.text["prompt"] for _, image in images] == [
        "red circle",
        "blue square",
        "red circle",
        "blue square",
        "red circle",
    ]
    assert {image.size for _, image in images} == {(32, 16)}

    # The digest knows what the file says, not where it lies.
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_text(file.read_text())
    assert (
        gallery.changed(tmp_path / "store", **{**settings, "prompts": str(moved)}).identity.digest
        == digest
    )
    file.write_text('{"prompt": "red square"}\n')
    assert gallery.changed(tmp_path / "store", **settings).identity.digest != digest


def test_prompts_that_are_not_there_are_said_before_anything_is_loaded(gallery, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        _ = gallery.changed(tmp_path, prompts="nowhere.txt").identity


def test_images_are_sampled_as_the_settings_ask(gallery, tmp_path):
    def pixels(name, **settings):
        asked = gallery.changed(tmp_path / name, num_images=4, **settings)
        return [np.asarray(picture) for _, picture in images_of(asked.generate(), "one_object")]

    plain = pixels("plain", guidance=1.0)
    guided = pixels("guided", guidance=5.0)
    # Guidance at the very end of sampling, t = 0, comes after the last step.
    never = pixels("never", guidance=5.0, guidance_interval=[0.0, 0.0])
    assert np.array_equal(never, plain)
    assert not np.array_equal(guided, plain)
    # Of a single step only the ends are times, and no shift moves them.
    assert np.array_equal(pixels("one", steps=1, shift=3.0), pixels("one, plain", steps=1))
    assert not np.array_equal(pixels("two", steps=2, shift=3.0), pixels("two, plain", steps=2))
