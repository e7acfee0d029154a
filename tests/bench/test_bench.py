"""`hdm bench`: the small run through the real command, faults of items, and plans by its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from hdm.bench import registry
from hdm.bench.asked import Asked
from hdm.bench.budgets import run_items
from hdm.errors import ConfigError
from hdm.planning.measured_file import (
    MeasuredFile,
    Row,
    fitted_shares,
    measured_card,
    read_measured,
)
from tests.bench.planted import DIES, ERRS, FINE, HANGS, RAISES

SMALL_RUN = ("bench", "--tiny", "--device", "cpu")


def hdm(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, " ".join(result.output.split())


def test_the_small_run_measures_every_item_and_finds_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    code, text = hdm(*SMALL_RUN, "--minutes", "60", "--out", str(path))
    assert code == 0, text
    found = read_measured(path)
    assert found.complete
    assert {row.item for row in found.rows} == {item.name for item in registry.ITEMS}
    # Nothing failed, and what has no figure says why.
    assert all(row.ok is not False for row in found.rows), found.rows
    assert all(row.value is not None or row.note for row in found.rows)
    assert found.card in text


def test_items_that_raise_hang_or_die_leave_the_others() -> None:
    items = (RAISES, FINE, HANGS, DIES, FINE)
    rows = [row for _, row in run_items(items, Asked("cpu", tiny=True), 3600)]
    values = [(row.item, row.value) for row in rows if row.value is not None]
    assert values == [("raises", 2.0), ("fine", 1.0), ("hangs", 3.0), ("dies", 4.0), ("fine", 1.0)]
    notes = {row.item: row.note for row in rows if row.note}
    assert notes == {
        "raises": "ValueError: planted",
        "hangs": "stopped after 1 s, its time",
        "dies": "its process ended with 9",
    }


def test_a_kernel_that_errs_fails_its_row_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ITEMS", (ERRS, FINE))
    path = tmp_path / "card.json"
    code, text = hdm(*SMALL_RUN, "--out", str(path))
    assert code == 1, text
    found = read_measured(path)
    assert [row.ok for row in found.rows] == [False, None]
    assert found.complete


def test_an_item_without_time_is_a_row_with_the_reason() -> None:
    rows = [row for _, row in run_items([FINE], Asked("cpu", tiny=True), 0)]
    assert [(row.value, row.note) for row in rows] == [(None, "no time was left: raise --minutes")]


def test_an_unknown_item_is_refused(tmp_path: Path) -> None:
    code, text = hdm(*SMALL_RUN, "--only", "nothing", "--out", str(tmp_path / "card.json"))
    assert code == 2
    assert "ceilings" in text


def _file(path: Path, *, tiny: bool = False) -> Path:
    """Of a card that reaches 0.5 · S / (S + 300) of 100 TFLOP/s."""
    rows = [Row("ceilings", "fast", "matrix product in bfloat16", 100.0, "TFLOP/s")]
    for tokens in (400.0, 1000.0, 4000.0):
        tflops = 100 * 0.5 * tokens / (tokens + 300)
        details = {"tokens": tokens, "tflops": tflops}
        rows.append(Row("step", "fast", f"{tokens:g} tokens", 1.0, "images/s", details=details))
    MeasuredFile(
        "NVIDIA GeForce RTX 4090", "cuda", 24 * 10**9, tiny, "bfloat16", "2026-01-01", {}, rows=rows
    ).write(path)
    return path


def test_a_plan_takes_the_measured_figures_and_says_so(tmp_path: Path) -> None:
    path = _file(tmp_path / "card.json")
    card = measured_card(path)
    assert card.tflops == 100
    assert card.memory_gb == 24
    assert card.peak_share == pytest.approx(0.5)
    assert card.half_tokens == pytest.approx(300)
    words = ("plan", "hdm-xut-base", "--json", "--store", str(tmp_path / "store"))
    _, assumed = hdm(*words, "--gpu", "rtx4090")
    _, measured = hdm(*words, "--measured", str(path))
    assert "measured, not assumed" in measured
    assert "measured, not assumed" not in assumed
    hours = [_hours(text) for text in (assumed, measured)]
    # On long sequences 165.2 · 0.618 against 100 · 0.5.
    assert 1.7 < hours[1] / hours[0] < 2.3


def _hours(text: str) -> float:
    outputs = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]["outputs"]
    hours: float = next(row["hours"] for row in outputs if row["name"] == "train.1024px")
    return hours


def test_small_sizes_plan_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tiny"):
        measured_card(_file(tmp_path / "card.json", tiny=True))


def test_doctor_knows_the_file(tmp_path: Path) -> None:
    assert "hdm bench checks" in hdm("doctor", "--store", str(tmp_path))[1]
    _file(tmp_path / "measured-card.json")
    assert "RTX 4090" in hdm("doctor", "--store", str(tmp_path))[1]


def test_shares_that_fall_with_length_are_taken_as_their_mean() -> None:
    share, half_tokens = fitted_shares([(100.0, 0.6), (1000.0, 0.4)])
    assert share == pytest.approx(0.5)
    assert half_tokens == 0
