"""The caption stage on a real download and a real CoCa, interrupted and not."""

import hashlib
from typing import Any

import pytest

from hdm.captioning import caption
from hdm.captioning.settings import CaptionMaker, CaptionSettings
from hdm.config import Pipeline
from hdm.curation import decide
from hdm.curation.measure import Measures
from hdm.curation.settings import FilterSettings
from hdm.data.tables import read_tables
from hdm.demo.scenes import draw, make_scene
from hdm.errors import InputError
from hdm.models.settings import Components
from hdm.store import Output, Store
from tests.curation.conftest import png, run

GIVEN = [
    "a red  circle",
    None,
    "None",
    "cats &amp; dogs",
    "",
    "a blue\x00 square\u200b",
    "a kept one",
    "too small",
]


@pytest.fixture
def made(store: Store, make_download) -> tuple[Output, Output]:
    """A download of two shards with one failed item and one that the filter refuses."""
    shown = [png(draw(make_scene(5, index))) for index in range(len(GIVEN) - 1)] + [
        png(draw(make_scene(5, 99, size_px=16)))
    ]
    download = make_download(
        list(zip(shown[:4], GIVEN[:4], strict=True)),
        [(None, "gone"), *zip(shown[4:], GIVEN[4:], strict=True)],
    )
    pipeline = Pipeline(threads=1, filter=FilterSettings(min_side_px=48))
    inputs = {"download": download}
    inputs["filter.measures"] = run(Measures(), pipeline, inputs, store)
    return download, run(decide, pipeline, inputs, store)


def captioned(
    made: tuple[Output, Output],
    store: Store,
    *makers: CaptionMaker,
    components: Components | None = None,
    **settings: Any,
) -> Output:
    pipeline = Pipeline(
        threads=1,
        components=components or Components(),
        caption=CaptionSettings(makers=makers, **settings),
    )
    return run(caption, pipeline, dict(zip(("download", "filter"), made, strict=True)), store)


def by_source(made: tuple[Output, Output], output: Output) -> dict[str, list[tuple[int, str, str]]]:
    sources = dict(
        zip(
            *(
                read_tables(made[0], "samples").column(name).to_pylist()
                for name in ("key", "source")
            ),
            strict=True,
        )
    )
    found: dict[str, list[tuple[int, str, str]]] = {}
    for row in read_tables(output, "captions").to_pylist():
        found.setdefault(sources[row["key"]], []).append(
            (row["index"], row["maker"], row["caption"])
        )
    return found


def test_given_captions_come_back_normalised_for_kept_pictures_alone(made, store):
    output = captioned(made, store, CaptionMaker())
    assert by_source(made, output) == {
        "0/0.png": [(0, "given", "a red circle")],
        "0/3.png": [(0, "given", "cats & dogs")],
        "1/2.png": [(0, "given", "a blue square")],
        "1/3.png": [(0, "given", "a kept one")],
    }
    assert output.counts == {
        "items": 7,
        "captions": 4,
        "captions_given": 4,
        "uncaptioned": 3,
        "given_dropped": 2,
        "given_cut": 0,
        "undecodable": 0,
    }


def test_missing_ones_are_made_by_the_coca_and_templates_add_to_the_given(made, store, coca_folder):
    makers = (
        CaptionMaker(),
        CaptionMaker(kind="coca", when="missing", max_tokens=6),
        CaptionMaker(kind="template", template="see {given}"),
    )
    output = captioned(made, store, *makers, components=Components(contrastive=str(coca_folder)))
    found = by_source(made, output)
    assert found["0/0.png"] == [(0, "given", "a red circle"), (1, "template", "see a red circle")]
    others = {source: rows for source, rows in found.items() if rows[0][1] != "given"}
    makers_of_others = {source: [maker for _, maker, _ in rows] for source, rows in others.items()}
    assert makers_of_others == {"0/1.png": ["coca"], "0/2.png": ["coca"], "1/1.png": ["coca"]}
    assert output.counts["captions_coca"] + output.counts["uncaptioned"] == 3


def test_pictures_gone_when_their_shard_is_downloaded_again_are_counted(
    made, store, make_download, coca_folder
):
    _, scores = made
    shown = [png(draw(make_scene(5, index))) for index in range(4)]
    download = make_download(
        [(None, GIVEN[0]), (None, GIVEN[1]), *zip(shown[2:], GIVEN[2:4], strict=True)],
        [(None, "gone"), *((None, given) for given in GIVEN[4:])],
    )
    assert download.digest == made[0].digest
    makers = (CaptionMaker(), CaptionMaker(kind="coca", max_tokens=6))
    output = captioned(
        (download, scores), store, *makers, components=Components(contrastive=str(coca_folder))
    )
    found = by_source(made, output)
    assert found["0/0.png"] == [(0, "given", "a red circle")]
    assert "0/1.png" not in found
    assert {maker for _, maker, _ in found["0/2.png"]} == {"coca"}
    assert (output.counts["items"], output.counts["undecodable"]) == (7, 5)


def test_the_transformers_maker_runs_as_a_stage(made, store, llava_folder):
    maker = CaptionMaker(kind="transformers", count=3, max_tokens=5)
    output = captioned(made, store, maker, components=Components(captioner=str(llava_folder)))
    assert output.counts["items"] == 7
    assert output.counts["captions"] > 7
    assert {maker for rows in by_source(made, output).values() for _, maker, _ in rows} == {
        "transformers"
    }


def test_equal_captions_of_one_picture_are_written_once(made, store):
    output = captioned(
        made,
        store,
        CaptionMaker(),
        CaptionMaker(kind="template", template="{given}|{given} |see {given}", count=3),
    )
    assert by_source(made, output)["0/0.png"] == [
        (0, "given", "a red circle"),
        (1, "template", "see a red circle"),
    ]


def test_all_given_captions_of_a_picture_are_kept_in_order(store, make_download):
    given = ["a fox", "an  animal", "a fox", "nan"]
    download = make_download([(png(draw(make_scene(5, 0))), given)])
    inputs = {"download": download}
    inputs["filter.measures"] = run(Measures(), Pipeline(threads=1), inputs, store)
    made = (download, run(decide, Pipeline(threads=1), inputs, store))
    output = captioned(made, store, CaptionMaker())
    assert by_source(made, output) == {
        "0/0.png": [(0, "given", "a fox"), (1, "given", "an animal")]
    }
    assert (output.counts["captions"], output.counts["given_dropped"]) == (2, 2)


def test_long_captions_are_cut_and_counted(made, store):
    cut = captioned(made, store, CaptionMaker(), max_chars=12)
    assert cut.counts["given_cut"] == 1  # "a blue square"
    assert by_source(made, captioned(made, store, CaptionMaker(), max_chars=10))["1/3.png"] == [
        (0, "given", "a kept one")
    ]
    assert by_source(made, captioned(made, store, CaptionMaker(), max_chars=9))["1/3.png"] == [
        (0, "given", "a kept")
    ]


def digests(output: Output) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*output.paths(), output.path / "manifest.json"]
    }


def test_a_rerun_after_losing_a_table_gives_the_same_bytes(made, store, coca_folder):
    makers = (CaptionMaker(), CaptionMaker(kind="coca", count=3, max_tokens=6))
    output = captioned(made, store, *makers, components=Components(contrastive=str(coca_folder)))
    before = digests(output)
    for name in ("manifest.json", "captions-00001.parquet"):
        (output.path / name).unlink()
    assert (
        digests(
            captioned(made, store, *makers, components=Components(contrastive=str(coca_folder)))
        )
        == before
    )


def test_the_batch_size_changes_neither_identity_nor_drawn_captions(
    made, store, tmp_path, coca_folder
):
    maker, components = (
        CaptionMaker(kind="coca", count=3, max_tokens=6),
        Components(contrastive=str(coca_folder)),
    )
    one = captioned(made, store, maker, components=components, batch_size=64)
    other = captioned(made, Store(tmp_path / "other"), maker, components=components, batch_size=2)
    assert one.digest == other.digest
    assert by_source(made, one) == by_source(made, other)


def test_a_maker_without_its_model_is_told_which_setting_is_missing(made, store):
    with pytest.raises(InputError, match="contrastive"):
        captioned(made, store, CaptionMaker(kind="coca"))
    with pytest.raises(InputError, match="captioner"):
        captioned(made, store, CaptionMaker(kind="transformers"))
