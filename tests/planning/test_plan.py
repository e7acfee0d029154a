"""Plans, against the published run and against outputs that were made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from hdm.config import Pipeline
from hdm.errors import ConfigError
from hdm.pipelines import load_pipeline
from hdm.planning import counts
from hdm.planning.hardware import CARDS, card
from hdm.planning.plan import (
    RESERVED_BYTES,
    Plan,
    Question,
    Row,
    make_plan,
    with_largest_micro_batches,
)
from hdm.stages import OutputGraph
from hdm.store import Store

PUBLISHED_HOURS = {
    "train.256px": 174,
    "train.512px": 120,
    "train.768px": 42,
    "train.1024px": 49,
}  # of four RTX 5090s


def pipeline(name: str, *settings: str) -> Pipeline:
    return load_pipeline(name, settings, environment={})


def named(plan: Plan) -> dict[str, Row]:
    return {row.name: row for row in plan.rows}


def hdm(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *words])
    return result.exit_code, result.output


def test_the_published_run_takes_the_hours_that_it_took(tmp_path: Path) -> None:
    asked = Question(
        pipeline("hdm-xut-base"), Store(tmp_path), CARDS["rtx5090"], num_gpus=4, live_encoders=True
    )
    rows = named(make_plan(asked))
    assert {name: rows[name].hours / 4 for name in PUBLISHED_HOURS} == pytest.approx(
        PUBLISHED_HOURS, rel=0.2
    )
    assert not any(name.startswith("encode.") and name.endswith("px") for name in rows)


def test_ours_takes_less_than_the_published_recipe(tmp_path: Path) -> None:
    base, ours = (
        make_plan(Question(pipeline(name), Store(tmp_path), CARDS["rtx5090"], live_encoders=live))
        for name, live in (("hdm-xut-base", True), ("hdm-xut-fast", False))
    )
    assert sum(row.hours for row in ours.rows) < 0.7 * sum(row.hours for row in base.rows)


def test_what_is_in_the_store_is_marked_and_counted_from(tmp_path: Path) -> None:
    store, demo = Store(tmp_path), pipeline("demo")
    before = named(make_plan(Question(demo, store, card("cpu"))))
    with store.draft(OutputGraph(demo).identity("download")) as draft:
        draft.write_json("items.json", [1, 2, 3], {"items": 7})
        draft.commit()
    plan = make_plan(Question(demo, store, card("cpu")))
    after = named(plan)
    assert after["download"].done
    assert after["download"].bytes == (next(store.outputs()).path / "items.json").stat().st_size
    assert not before["download"].done
    assert after["encode.64px"].items == 7 < before["encode.64px"].items
    assert "download" not in [row.name for row in plan.left]


def test_looking_leaves_a_damaged_output_where_it_is(tmp_path: Path) -> None:
    store, demo = Store(tmp_path), pipeline("demo")
    with store.draft(OutputGraph(demo).identity("download")) as draft:
        draft.write_json("items.json", [1], {"items": 7})
        manifest = draft.commit().path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("items", "itens"))
    assert not named(make_plan(Question(demo, store, card("cpu"))))["download"].done
    assert manifest.exists()


def test_captions_are_embedded_whether_or_not_a_limit_reads_their_similarity(
    tmp_path: Path,
) -> None:
    without_limit = pipeline("hdm-xut-base", "filter.min_clip_similarity=null")
    question = Question(without_limit, Store(tmp_path), CARDS["h100"])
    picture, text = counts.PUBLISHED_TOWERS["ViT-L-14"]
    both = question.card.seconds(picture.flops() + text.flops(), picture.tokens)
    row = named(make_plan(question))["filter.contrastive"]
    assert row.hours == pytest.approx(row.items * both / 3600)


def test_the_largest_micro_batches_fit(tmp_path: Path) -> None:
    asked = Question(pipeline("hdm-xut-base"), Store(tmp_path), CARDS["rtx4090"], num_gpus=4)
    solved = with_largest_micro_batches(asked)
    rows = make_plan(Question(solved, Store(tmp_path), CARDS["rtx4090"], num_gpus=4)).rows
    room = 1e9 * CARDS["rtx4090"].memory_gb - RESERVED_BYTES
    assert all(0.9 * room < row.memory_bytes <= room for row in rows if row.memory_bytes)
    assert [phase.micro_batch for phase in solved.train.phases] != [
        phase.micro_batch for phase in asked.pipeline.train.phases
    ]
    assert solved.train.phases[0].result_fields() == asked.pipeline.train.phases[0].result_fields()


def test_without_a_count_of_pictures_it_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected_items"):
        make_plan(Question(pipeline("folder"), Store(tmp_path), card("cpu")))


def test_exit_codes_and_what_is_told(tmp_path: Path) -> None:
    code, told = hdm("hdm-xut-base", "--gpu", "rtx5090", "--store", str(tmp_path))
    assert code == 3
    assert "train.256px takes" in told
    assert "--solve batch_size" in told
    assert "two figures fitted" in told
    assert hdm("demo", "--gpu", "rtx6000", "--store", str(tmp_path))[0] == 2


def test_costs_in_json(tmp_path: Path) -> None:
    code, told = hdm(
        "demo",
        "--gpu",
        "h100",
        "--price",
        "2",
        "--power-price",
        "0.5",
        "--json",
        "--store",
        str(tmp_path),
    )
    found = json.loads(told)
    assert code == 0
    hours = found["all"]["hours"]
    assert hours == pytest.approx(sum(row["hours"] for row in found["outputs"]))
    assert found["all"]["money"] == pytest.approx(2 * hours)
    assert found["all"]["kwh"] == pytest.approx(0.7 * hours)
    assert found["all"]["power_money"] == pytest.approx(0.35 * hours)
    assert found["problems"] == []


@pytest.mark.parametrize(("device", "cards"), [("auto", 4), ("cuda:0,cuda:2", 2), ("cpu", 1)])
def test_the_hours_of_latents_are_shared_by_the_cards_that_encode_them(
    device: str, cards: int, tmp_path: Path
) -> None:
    asked = pipeline("hdm-xut-fast", f"encode.device={device}")
    rows = {}
    for num_gpus in (1, 4):
        question = Question(asked, Store(tmp_path), CARDS["rtx5090"], num_gpus=num_gpus)
        rows[num_gpus] = named(make_plan(question))
    for name, row in rows[4].items():
        alone = rows[1][name]
        assert row.hours == pytest.approx(alone.hours), "the work is the same"
        if name.endswith("px") and name.startswith("encode"):
            assert row.processes == cards
        elif not name.startswith("train"):
            assert row.processes == 1
