"""The whole pipeline killed in a training, on the stages themselves.

`make faults` kills at many more moments, through Prefect.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hdm.pipelines import load_pipeline
from hdm.stages import run
from hdm.store import Store
from hdm.training import phase
from tests.faults.kill_anywhere import command, contents, kill, start
from tests.training.here import train_here

TINY = (
    "download.scenes.count=48",
    "download.shard_items=24",
    "download.timeout_sec=3",
    "filter.held_out=0.1",
    "filter.validation=0.1",
    "train.checkpoint_sec=0.01",
    "train.peak_tflops=0.1",
    "train.model.width=32",
    "train.model.num_heads=2",
    "train.model.head_size=16",
    "train.model.mlp_width=64",
    "train.phases=[{resolution: 48, num_images: 256, batch_size: 16, tread_rate: 0}]",
    "train.prompts=[a red circle]",
    "evaluate.num_images=4",
    "evaluate.steps=2",
    "threads=1",
)


def test_killed_and_run_again_every_byte_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, store, log = (tmp_path / name for name in ("undisturbed", "killed", "killed.log"))
    words = command("stages", store, TINY)
    killed = start(words, log)
    while not list(store.glob("train.*/*/.scratch/checkpoint-????????")):
        assert killed.poll() is None, log.read_text()
        time.sleep(0.01)
    assert kill(killed, store) is None
    assert not list(store.glob("train.*/*/manifest.json"))
    assert start(words, log).wait() == 0, log.read_text()

    monkeypatch.setattr(phase, "run_training", train_here)
    list(run(load_pipeline("demo", TINY), Store(whole)))
    assert contents(store) == contents(whole)
