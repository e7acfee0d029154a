from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hdm.errors import DamagedError, DoesNotFitError
from hdm.files import canonical_json
from hdm.training.state.checkpoint import newest, save
from hdm.training.state.trainable import WholeModel
from hdm.training.techniques.best import Best
from tests.small_models import TINY

CONFIG = replace(TINY, prev_blocks=0, post_blocks=0)


def save_steps(folder: Path, *steps: int) -> None:
    for step in steps:
        tensors = {
            name: {"a.b": torch.full((3,), float(step))} for name in ("weights", "ema", "optimizer")
        }
        save(
            folder,
            step,
            tensors,
            f"line {step}\n".encode(),
            {"position": {"step": step, "loss_sum": 0.1}},
        )


def test_the_newest_comes_back_as_it_was(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    found = newest(tmp_path)
    assert found is not None
    assert found.state["position"] == {"step": 2, "loss_sum": 0.1}
    assert found.metrics == b"line 2\n"
    assert torch.equal(found.tensors("optimizer")["a.b"], torch.full((3,), 2.0))


def test_two_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 20, 300, 4000)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00000300",
        "checkpoint-00004000",
    ]


def test_nothing_saved(tmp_path: Path) -> None:
    assert newest(tmp_path) is None


@pytest.mark.parametrize(
    "file",
    [
        "weights.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "metrics.jsonl",
        "state.json",
    ],
)
def test_a_flipped_bit_anywhere_leads_to_the_one_before(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, 1, 2)
    path = tmp_path / "checkpoint-00000002" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = newest(tmp_path)
    assert found is not None
    assert found.state["position"]["step"] == 1
    assert file in caplog.text
    # Set aside: the same step can be saved again.
    save_steps(tmp_path, 2)
    again = newest(tmp_path)
    assert again is not None
    assert again.state["position"]["step"] == 2


def test_half_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    half = tmp_path / ".tmp-checkpoint-00000002"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"torn")
    found = newest(tmp_path)
    assert found is not None
    assert found.state["position"]["step"] == 1
    assert not half.exists()


def test_a_checkpoint_of_an_older_release_is_gone_on_from(tmp_path: Path) -> None:
    """Its files were hashed with sha256."""
    save_steps(tmp_path, 1)
    folder = tmp_path / "checkpoint-00000001"
    state = json.loads((folder / "state.json").read_bytes())
    del state["sha256"]
    del state["xxh3"]
    files = [path for path in folder.iterdir() if path.name != "state.json"]
    state["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    own = hashlib.sha256(canonical_json(state)).hexdigest()
    (folder / "state.json").write_bytes(canonical_json({**state, "sha256": own}))
    found = newest(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors("ema")["a.b"], torch.full((3,), 1.0))
    data = bytearray((folder / "ema.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "ema.safetensors").write_bytes(data)
    assert newest(tmp_path) is None


def test_a_checkpoint_that_will_not_fit_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    large = {"weights": {"a": torch.zeros(1_000_000)}}
    with pytest.raises(DoesNotFitError, match=r"1\.5 MB free, 4\.0 MB needed"):
        save(tmp_path, 2, large, b"", {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001"]


def test_the_best_weights_are_compared_before_they_are_taken(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    best = Best(tmp_path, WholeModel(model, decay=0.9))  # type: ignore[arg-type]
    best.add(3, writes=True)
    best.load(3)
    path = tmp_path / "best" / "00000003" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"weights\.safetensors is damaged"):
        best.load(3)
