"""Measuring and deciding on a real download, with a real contrastive model, interrupted and not."""

import hashlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from hdm.config import Pipeline
from hdm.curation import decide, embed, rate
from hdm.curation.embed import Embeddings
from hdm.curation.measure import Measures
from hdm.curation.outputs import filter_outputs
from hdm.curation.settings import FilterSettings, TopFraction
from hdm.curation.splits import SplitMemory
from hdm.data.tables import read_tables
from hdm.demo.scenes import draw, make_scene
from hdm.errors import ConfigError, DamagedError, InputError
from hdm.models.components import resolve
from hdm.models.contrastive import load_contrastive
from hdm.models.settings import Components
from hdm.pictures.settings import ImageSettings
from hdm.store import Draft, Output, Store
from tests.curation.conftest import png, run
from tests.models.conftest import coca_folder, tokenizer_folder  # noqa: F401
from tests.pictures.test_images import encoded, photograph
from tests.pictures.test_images import png as png_by_hand

Digests = dict[str, str]


def scene(index: int, **options: Any) -> np.ndarray:
    return draw(make_scene(5, index, **options))


def filtered(download: Output, store: Store, pipeline: Pipeline) -> tuple[Output, Output]:
    """The measures and the decision."""
    outputs = every_output(download, store, pipeline)
    return outputs["filter.measures"], outputs["filter"]


def every_output(download: Output, store: Store, pipeline: Pipeline) -> dict[str, Output]:
    """All outputs of the stage by name."""
    made = {"download": download}
    for step in filter_outputs(pipeline):
        made[step.name] = run(step, pipeline, {name: made[name] for name in step.inputs}, store)
    del made["download"]
    return made


def digests(output: Output) -> Digests:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*output.paths(), output.path / "manifest.json"]
    }


def test_every_downloaded_item_has_a_row_in_order_and_its_measures(store, make_download):
    wide = scene(1)
    download = make_download(
        [(png(wide), None), (None, None)],
        [(png(scene(2))[:100], None), (b"<html>", None), (png(scene(3)), "x")],
    )
    rows = read_tables(
        run(Measures(), Pipeline(threads=1), {"download": download}, store), "measures"
    ).to_pylist()
    samples = [row for row in read_tables(download, "samples").to_pylist() if row["status"] == "ok"]
    assert [row["key"] for row in rows] == [row["key"] for row in samples]
    assert [row["decoded"] for row in rows] == ["ok", "corrupt", "not_image", "ok"]
    assert (rows[0]["height"], rows[0]["width"]) == wide.shape[:2]
    assert all(
        rows[1][name] is None for name in ("width", "sharpness", "noise", "fingerprint", "sha256")
    )


def test_the_best_of_several_captions_counts_and_long_ones_are_counted(
    store,
    make_download,
    coca_folder,  # noqa: F811
    caplog,
):
    pictures = [scene(index) for index in range(3)]
    given = [["a red circle", "a blue square"], [], ["red " * 40, "a square", "a circle"]]
    download = make_download(
        [(png(p), captions) for p, captions in zip(pictures, given, strict=True)]
    )
    pipeline = Pipeline(threads=1, components=Components(contrastive=str(coca_folder)))
    similarities = run(Embeddings(), pipeline, {"download": download}, store)
    model = load_contrastive(resolve(pipeline.components))
    images = model.embed_images(pictures)
    best = [
        max((image * model.embed_texts(captions)).sum(axis=1)) if captions else None
        for image, captions in zip(images, given, strict=True)
    ]
    found = read_tables(similarities, "contrastive")["clip_similarity"].to_pylist()
    assert [value is None for value in found] == [False, True, False]
    assert [value for value in found if value] == pytest.approx([v for v in best if v], abs=1e-5)
    assert similarities.counts["captions_cut"] == 1
    assert "1 given captions are longer than the contrastive model reads" in caplog.text


def test_pictures_over_a_limit_are_rows_with_a_status_of_their_own_and_counted(
    store, make_download
):
    """A JPEG of 2,000 scans, an animation broken behind its first frame, and pixels for which the
    memory is too small.
    """
    whole = encoded(photograph(640, 480), "JPEG", progressive=True)
    scans = whole[:-2] + 2000 * whole[whole.rindex(b"\xff\xda") : -2] + whole[-2:]
    frames = [photograph(), photograph().rotate(180)]
    gif = bytearray(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    gif[gif.rindex(b"\x2c") + 5] = 0xFF  # the second frame's width
    huge = png_by_hand(11_000, 11_000, 1, 0, bytes(1 + 1375) * 11_000)
    files = [png(scene(1)), scans, bytes(gif), huge, png(scene(2))]
    download = make_download([(data, None) for data in files])
    pipeline = Pipeline(threads=1, images=ImageSettings(max_memory_mb=512))
    measures = run(Measures(), pipeline, {"download": download}, store)
    decoded = [row["decoded"] for row in read_tables(measures, "measures").to_pylist()]
    assert decoded[:2] == ["ok", "too_many_scans"]
    assert decoded[2] in ("ok", "corrupt")
    assert decoded[3:] == ["too_much_memory", "ok"]
    assert measures.counts["undecodable_too_many_scans"] == 1
    assert measures.counts["undecodable_too_much_memory"] == 1


def test_entry_48_of_the_catalogue_is_refused_with_the_reason(store, make_download):
    """Black, white, one colour, noise, exact and near duplicates, mirrored."""
    good = [scene(index) for index in range(4)]
    smaller = np.asarray(
        Image.fromarray(good[0]).resize(
            [side * 19 // 20 for side in good[0].shape[1::-1]], Image.Resampling.BICUBIC
        )
    )
    planted = {
        "black": (np.zeros((64, 64, 3), np.uint8), "blurred"),
        "white": (np.full((64, 64, 3), 255, np.uint8), "blurred"),
        "one colour": (np.full((64, 90, 3), (20, 160, 90), np.uint8), "blurred"),
        "noise": (np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "noisy"),
        "out of focus": (
            np.asarray(Image.fromarray(good[1]).filter(ImageFilter.GaussianBlur(4))),
            "blurred",
        ),
        "exact": (good[2], "duplicate"),
        "near": (smaller, "duplicate"),
        "mirrored": (np.asarray(ImageOps.mirror(Image.fromarray(good[3]))), "duplicate"),
    }
    download = make_download(
        [(png(pixels), None) for pixels in good],
        [(png(pixels), None) for pixels, _ in planted.values()],
    )
    settings = FilterSettings(min_sharpness=0.35, max_noise=10.0, duplicate_mirrored=True)
    _, scores = filtered(download, store, Pipeline(threads=1, filter=settings))
    rows = read_tables(scores, "scores").to_pylist()
    # Of two pictures of one quality the key decides which stays.
    for original, copy in ((2, 9), (3, 11)):
        if rows[copy]["kept"]:
            rows[original], rows[copy] = rows[copy], rows[original]
    assert all(row["kept"] and row["split"] and row["reason"] is None for row in rows[:4])
    assert [row["reason"] for row in rows[4:]] == [reason for _, reason in planted.values()]
    assert [row["detail"] for row in rows[-3:]] == [rows[2]["key"], rows[0]["key"], rows[3]["key"]]
    assert all(row["split"] is None for row in rows[4:])
    assert (scores.counts["items"], scores.counts["kept"]) == (12, 4)
    rejected = {"blurred": 4, "noisy": 1, "duplicate": 3, "aspect": 0}
    assert {reason: scores.counts[f"rejected_{reason}"] for reason in rejected} == rejected
    assert sum(scores.counts[split] for split in ("train", "validation", "held_out")) == 4


def test_a_set_that_grows_keeps_its_splits_and_copies_join_their_originals(store, make_download):
    """Larger versions, which stay in the place of the first ones, take the split that these had."""
    rng = np.random.default_rng(0)
    first = [
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((64, 64))
        for _ in range(24)
    ]
    larger = [picture.resize((80, 80), Image.Resampling.BICUBIC) for picture in first]
    pipeline = Pipeline(threads=1, filter=FilterSettings(validation=0.2, held_out=0.4))
    before = filtered(make_download([(png(np.asarray(p)), None) for p in first]), store, pipeline)[
        1
    ]
    grown = [(png(np.asarray(p)), None) for p in (*larger, *first)]
    after = filtered(make_download(grown), store, pipeline)[1]
    splits = read_tables(before, "scores").column("split").to_pylist()
    assert {"train", "validation", "held_out"} == set(splits)
    rows = read_tables(after, "scores").to_pylist()
    assert [row["split"] for row in rows[:24]] == splits
    assert [row["reason"] for row in rows[24:]] == ["duplicate"] * 24
    elsewhere = Store(store.root.parent / "elsewhere")
    fresh = filtered(make_download(grown), elsewhere, pipeline)[1]
    assert read_tables(fresh, "scores").column("split").to_pylist()[:24] != splits


class Killed(BaseException):
    """Ends a run where a kill would."""


@pytest.mark.parametrize(
    ("owner", "method", "is_done"),
    [(SplitMemory, "remember", False), (SplitMemory, "remember", True), (Draft, "commit", False)],
)
def test_the_pictures_that_move_to_training_are_counted_after_a_kill_and_after_damage(
    store, make_download, monkeypatch, owner, method, is_done
):
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((64, 64))
        for _ in range(12)
    ]
    mirrored = map(ImageOps.mirror, pictures)
    download = make_download([(png(np.asarray(one)), None) for one in (*pictures, *mirrored)])
    shares = dict(validation=0.2, held_out=0.4)
    apart = Pipeline(threads=1, filter=FilterSettings(**shares))
    measures, before = filtered(download, store, apart)
    splits = read_tables(before, "scores").column("split").to_pylist()
    moving = [pair for pair in zip(splits[:12], splits[12:], strict=True) if len(set(pair)) > 1]
    num_moved = sum(split != "train" for pair in moving for split in pair)
    assert num_moved > 0

    together = Pipeline(threads=1, filter=FilterSettings(**shares, duplicate_mirrored=True))
    inputs = {"download": download, "filter.measures": measures}
    whole = getattr(owner, method)

    def interrupted(*arguments: Any) -> None:
        if is_done:
            whole(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, interrupted)
        with pytest.raises(Killed):
            run(decide, together, inputs, store)
    made = run(decide, together, inputs, store)
    assert made.summary == {"moved_to_train": num_moved}
    made.file("scores-00000.parquet").write_bytes(b"damaged")
    assert run(decide, together, inputs, store) == made


def test_the_matte_belongs_to_the_measures_and_thresholds_do_not(make_download):
    def identities(**settings: Any) -> tuple[str, str]:
        pipeline = Pipeline(**settings)
        first = Measures().identify(pipeline, {"download": "0" * 16})
        return first.digest, decide.identify(
            pipeline, {"download": "0" * 16, "filter.measures": first.digest}
        ).digest

    plain, strict = identities(), identities(filter=FilterSettings(min_sharpness=0.3))
    assert plain[0] == strict[0]
    assert plain[1] != strict[1]
    assert identities(images=ImageSettings(matte="#000000"))[0] != plain[0]
    assert identities(filter=FilterSettings(batch_size=3), threads=1) == plain


@pytest.fixture
def scored(store, make_download, coca_folder):  # noqa: F811
    captions = ["a red circle on the left", None, "None", "a blue square"]
    download = make_download(
        [(png(scene(index)), caption) for index, caption in enumerate(captions)],
        [(b"", "x"), (png(scene(9)), "&nbsp;")],
    )
    return download, Components(contrastive=str(coca_folder))


def test_embeddings_and_similarities_are_the_models_own(store, scored):
    download, components = scored
    output = run(
        Embeddings(), Pipeline(threads=1, components=components), {"download": download}, store
    )
    model = load_contrastive(resolve(components))
    pictures = [scene(index) for index in (0, 1, 2, 3, 9)]
    expected = np.concatenate([model.embed_images([picture]) for picture in pictures])
    rows = read_tables(output, "contrastive").to_pylist()
    keys, embeddings = embed.read_embeddings(output)
    assert keys == [row["key"] for row in rows if row["decoded"] == "ok"]
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    similarity = [row["clip_similarity"] for row in rows]
    texts = model.embed_texts(["a red circle on the left", "a blue square"])
    assert [value is None for value in similarity] == [False, True, True, False, True, True]
    np.testing.assert_allclose(
        [similarity[0], similarity[3]], (expected[[0, 3]] * texts).sum(1), atol=1e-5
    )


def test_the_batch_size_changes_embeddings_by_rounding_alone(store, scored, tmp_path):
    download, components = scored
    one, other = (
        run(
            Embeddings(),
            Pipeline(threads=1, components=components, filter=FilterSettings(batch_size=size)),
            {"download": download},
            where,
        )
        for size, where in ((64, store), (2, Store(tmp_path / "other")))
    )
    assert one.digest == other.digest
    np.testing.assert_allclose(
        embed.read_embeddings(one)[1], embed.read_embeddings(other)[1], atol=1e-5
    )


def test_the_aesthetic_score_is_the_heads_of_the_embedding(store, scored, tmp_path):
    import torch

    download, components = scored
    weight = torch.linspace(-1, 1, 32)[None]
    torch.save({"weight": weight, "bias": torch.tensor([5.0])}, tmp_path / "head.pth")
    components = components.model_copy(
        update={
            "aesthetic_head": str(tmp_path / "head.pth"),
            "aesthetic_head_for": components.contrastive,
        }
    )
    pipeline = Pipeline(
        threads=1, components=components, filter=FilterSettings(top_fraction=TopFraction(keep=0.4))
    )
    outputs = every_output(download, store, pipeline)
    scores = outputs["filter"]
    expected = embed.read_embeddings(outputs["filter.contrastive"])[1] @ weight[0].numpy() + 5
    rows = [row for row in read_tables(scores, "scores").to_pylist() if row["decoded"] == "ok"]
    np.testing.assert_allclose([row["aesthetic"] for row in rows], expected, atol=1e-5)
    best = sorted(range(5), key=lambda number: -rows[number]["aesthetic"])[:2]
    assert [number for number in range(5) if rows[number]["kept"]] == sorted(best)


def test_a_rerun_after_losing_tables_gives_the_same_bytes(store, scored):
    download, components = scored
    pipeline = Pipeline(threads=1, components=components)
    before = [digests(output) for output in every_output(download, store, pipeline).values()]
    for output in every_output(download, store, pipeline).values():
        for name in (
            "manifest.json",
            "measures-00000.parquet",
            "embeddings-00001.parquet",
            "contrastive-00000.parquet",
            "scores-00001.parquet",
        ):
            (output.path / name).unlink(missing_ok=True)
    assert [
        digests(output) for output in every_output(download, store, pipeline).values()
    ] == before


def test_a_flipped_byte_in_a_tar_is_found_and_the_file_named(store, make_download):
    download = make_download([(png(scene(index)), None) for index in range(3)])
    tar = download.file("images-00000.tar")
    data = bytearray(tar.read_bytes())
    data[len(data) // 3] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamagedError, match=r"images-00000\.tar"):
        run(Measures(), Pipeline(threads=1), {"download": download}, store)


def test_without_models_only_the_pixels_are_measured(store, make_download):
    outputs = every_output(make_download([(png(scene(0)), "x")]), store, Pipeline(threads=1))
    assert list(outputs) == ["filter.measures", "filter"]
    (row,) = read_tables(outputs["filter"], "scores").to_pylist()
    assert row["kept"]
    assert row["aesthetic"] is None
    assert row["clip_similarity"] is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"min_aesthetic": 5.0}, ("filter.min_aesthetic", "components.aesthetic_head")),
        ({"min_clip_similarity": 0.2}, ("filter.min_clip_similarity", "components.contrastive")),
        (
            {"top_fraction": TopFraction(by="aesthetic")},
            ("filter.top_fraction", "components.aesthetic_head"),
        ),
        ({"validation": 0.5, "held_out": 0.5}, ("filter.validation", "filter.held_out")),
    ],
)
def test_thresholds_that_cannot_be_met_name_both_sides(settings, named):
    with pytest.raises(ConfigError) as error:
        decide.identify(Pipeline(filter=FilterSettings(**settings)), {})
    assert all(name in str(error.value) for name in named)


def test_an_aesthetic_head_without_a_contrastive_model_is_refused():
    with pytest.raises(ConfigError, match="contrastive"):
        rate.identify(Pipeline(components=Components(aesthetic_head="head.pth")), {})
    with pytest.raises(ConfigError, match="contrastive"):
        decide.identify(Pipeline(components=Components(aesthetic_head="head.pth")), {})


def test_when_nothing_is_kept_the_reasons_and_their_numbers_are_named(store, make_download):
    download = make_download(
        [(png(scene(index, size_px=20)), None) for index in range(3)], [(b"nothing", None)]
    )
    with pytest.raises(
        InputError, match=r"none of 4 pictures: 3 too_small, 1 undecodable(.|\n)*filter.min_side_px"
    ):
        filtered(download, store, Pipeline(threads=1))
    with pytest.raises(InputError, match="no picture was downloaded"):
        filtered(make_download([(None, None)]), store, Pipeline(threads=1))
