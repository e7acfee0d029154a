"""Stores of earlier versions: what is found, what is adopted, and what is made again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from hdm.errors import DamagedError
from hdm.last_runs import LastRun, remember
from hdm.migration import SCHEMAS, Verdict, adopt, verdicts
from hdm.pipelines import load_pipeline
from hdm.stages import run, steps
from hdm.store import Identity, Output, Store
from tests.store_as_of_old import as_of_old

OWN = """\
pipelines:
  small:
    components: {folder: demo}
    download: {kind: scenes, allow_loopback: true, scenes: {count: 12, faults: 0}}
    filter: {min_side_px: 16}
"""
MEASURES, DECISION = SCHEMAS["filter.measures"], SCHEMAS["filter"]
UNCHANGED = {"filter.measures": {MEASURES - 1: MEASURES}}


def hdm(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def made(store: Store, name: str, schema: int, inputs: Mapping[str, str] | None = None) -> Output:
    """A finished output with a file of its own and a file that is copied."""
    with store.draft(Identity(name, schema, {"a": 1}, inputs or {}, {"model": "ab"})) as draft:
        with draft.write("table.bin") as file:
            file.path.write_bytes(name.encode() * 1000)
            file.counts["rows"] = 3
        draft.write_json("small.json", {"name": name}, copied=True)
        return draft.commit({"seconds": 7})


def chain(store: Store) -> list[Output]:
    """A download, measures with the schema before, a decision and captions made from them."""
    download = made(store, "download", SCHEMAS["download"])
    measures = made(store, "filter.measures", MEASURES - 1, {"download": download.digest})
    inputs = {"download": download.digest, "filter.measures": measures.digest}
    decision = made(store, "filter", DECISION, inputs)
    captions = made(store, "caption", SCHEMAS["caption"], {"filter": decision.digest})
    return [download, measures, decision, captions]


def by_name(store: Store, unchanged: Mapping[str, Mapping[int, int]]) -> dict[str, Verdict]:
    return {one.output.name: one for one in verdicts(store.outputs(), unchanged)}


def test_a_store_of_0_1_0_is_found_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "pipelines.yaml"
    file.write_text(OWN)
    pipeline, store = load_pipeline("small", (), file, {}), Store(tmp_path / "store")
    outputs = [one.output for one in run(pipeline, store, stop_after="filter")]
    for output in outputs:
        as_of_old(output.path)
    digests = {output.name: output.digest for output in outputs}
    remember(store.root, LastRun("small", time.time(), {**digests, "caption": None}))

    said = hdm("migrate", "--store", store.root, "--file", file)
    assert said.count("found       ") == len(outputs)
    assert "nothing is to be done" in said
    assert f"small: the same digests as its last run, {len(outputs)} of {len(outputs)}" in said
    assert all(one.cached for one in run(pipeline, store, stop_after="filter"))

    file.write_text(OWN.replace("16", "17"))
    changed = hdm("migrate", "--store", store.root, "--file", file)
    assert f"small: {len(outputs) - 1} of {len(outputs)} digests as in its last run" in changed


@pytest.mark.parametrize("name", ["usual", "demo"])
def test_every_output_that_this_version_makes_is_known(name: str, tmp_path: Path) -> None:
    file = Path(__file__).parent / "digests.yaml"
    # Without what is not on this machine: a folder of pictures, a vision model, other weights.
    overrides = ["download.kind=scenes", "encode.features=false", "train.align_weight=0"]
    overrides += ["train.start=null", "vae.scratch=true"]
    pipeline = load_pipeline(name, overrides, file, {})
    store, expected = Store(tmp_path), {}
    for step in steps(pipeline):
        identity = step.identify(pipeline, dict.fromkeys(step.inputs, "0" * 16))
        with store.draft(identity) as draft:
            draft.commit()
        expected[step.name] = identity
    found = verdicts(store.outputs())
    assert {one.output.name: one.now for one in found} == expected
    assert all(one.is_found for one in found)


def test_an_output_with_the_same_result_is_adopted_with_all_that_was_made_from_it(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    before = chain(store)
    found = by_name(store, UNCHANGED)
    assert found["download"].is_found
    for output in before[1:]:
        assert not found[output.name].is_found
        adopted = adopt(store, found[output.name])
        assert adopted.digest == found[output.name].now.digest  # type: ignore[union-attr]
        assert store.find(adopted.identity) is not None
        assert adopted.summary == output.summary
        assert adopted.counts == output.counts
        for name in ("table.bin", "small.json"):
            assert adopted.file(name).read_bytes() == output.file(name).read_bytes()
        assert (output.path / "manifest.json").exists(), "the earlier one stays until hdm gc"
    after = by_name(store, UNCHANGED)["filter.measures"]
    now = Identity(
        "filter.measures", MEASURES, {"a": 1}, {"download": before[0].digest}, {"model": "ab"}
    )
    assert store.find(now) is not None
    assert adopt(store, after).digest == now.digest, "once more changes nothing"


def test_a_copied_small_file_mends_what_was_adopted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    chain(store)
    adopted = adopt(store, by_name(store, UNCHANGED)["filter.measures"])
    adopted.file("small.json").unlink()
    assert store.find(adopted.identity) is not None


def test_a_damaged_file_is_not_adopted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    measures = chain(store)[1]
    data = bytearray(measures.file("table.bin").read_bytes())
    data[7] ^= 1
    measures.file("table.bin").write_bytes(data)
    verdict = by_name(store, UNCHANGED)["filter.measures"]
    with pytest.raises(DamagedError, match=r"table\.bin"):
        adopt(store, verdict)
    assert verdict.now is not None
    assert store.find(verdict.now) is None


def test_what_changed_and_what_was_made_from_it_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    chain(store)
    made(store, "evaluate", 1)
    said = hdm("migrate", "--store", tmp_path)
    assert f"its format was version {MEASURES - 1} and is {MEASURES}" in said
    assert said.count("made again") == 6  # four outputs, and two as the reason of others
    assert "made from filter.measures, which is made again" in said
    assert "this version makes no such output" in said
    assert "1 output of 5 found" in said
    assert "nothing is to be done" not in said
