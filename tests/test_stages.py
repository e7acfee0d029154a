"""The list of outputs: order, identities known beforehand, and what a change of settings redoes."""

from pathlib import Path

import pytest

from hdm.errors import ConfigError, DamagedError, InputError
from hdm.pipelines import load_pipeline
from hdm.stages import chosen, identities, run, run_step, steps
from hdm.store import Store

SMALL = ("download.scenes.count=12", "download.scenes.faults=0", "download.shard_items=6", "download.allow_loopback=true")


def changed(*overrides: str) -> set[str]:
    """Outputs of the demo whose digests differ from the plain ones."""
    before, after = identities(load_pipeline("demo")), identities(load_pipeline("demo", overrides))
    return {name for name in after if name not in before or after[name].digest != before[name].digest}


def test_every_output_comes_after_its_inputs():
    seen: set[str] = set()
    for step in steps(load_pipeline("demo")):
        assert set(step.inputs) <= seen
        seen.add(step.name)


def test_a_change_redoes_what_depends_on_it_and_nothing_else():
    after_filter = {
        "filter",
        "caption",
        "encode.tokens",
        "encode.text",
        "encode.48px",
        "encode.64px",
        "train.48px",
        "train.64px",
        "evaluate",
    }
    assert changed("filter.min_side_px=40") == after_filter
    assert changed("caption.max_chars=100") == {"caption", "encode.tokens", "encode.text", "train.48px", "train.64px", "evaluate"}
    assert changed("train.phases.1.tread_rate=0.25") == {"train.64px", "evaluate"}
    assert changed("train.mirror=true") == {"train.48px", "train.64px", "evaluate"}
    assert changed("evaluate.guidance=2.0") == {"evaluate"}
    assert changed("train.phases.1.resolution=80") == {"encode.80px", "train.80px", "evaluate"}
    assert changed("download.concurrency=3", "filter.batch_size=7", "encode.batch_size=3", "train.checkpoint_sec=1", "threads=1") == set()


def test_part_of_a_pipeline():
    demo = load_pipeline("demo")
    assert [s.name for s in chosen(demo, "caption", "encode")] == ["caption", "encode.tokens", "encode.text", "encode.48px", "encode.64px"]
    assert [s.name for s in chosen(demo, "train.64px")] == ["train.64px", "evaluate"]
    with pytest.raises(ConfigError, match="encode comes after caption"):
        chosen(demo, "encode", "caption")
    with pytest.raises(ConfigError, match=r"no stage 'train\.32px'"):
        chosen(demo, "train.32px")


def test_a_stage_without_its_inputs_says_where_to_start(tmp_path):
    with pytest.raises(InputError, match="--from download"):
        run_step(load_pipeline("demo", SMALL), Store(tmp_path), "filter.measures")


def test_damage_found_late_is_set_aside_and_mended_by_the_same_command(tmp_path: Path):
    """Beyond the start-up check only the stage that reads a picture can notice; the next run must not trip again."""
    demo = load_pipeline("demo", SMALL)
    (download,) = run(demo, Store(tmp_path), stop_after="download")
    tar = download.output.paths(".tar")[0]
    whole = tar.read_bytes()
    data = bytearray(whole)
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamagedError):
        run_step(demo, Store(tmp_path, verify_bytes=0), "filter.measures")
    again = [(made.output.name, made.cached) for made in run(demo, Store(tmp_path, verify_bytes=0), stop_after="filter")]
    assert again == [("download", False), ("filter.measures", False), ("filter", False)]
    assert tar.read_bytes() == whole
