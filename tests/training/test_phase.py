"""Training in processes of its own: what it writes, and what signals and kills do to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hdm.errors import HdmError
from hdm.store import Output, locked
from hdm.training.checkpoint import read_model
from tests.training.workshop import Workshop

RUN_PHASE = Path(__file__).with_name("run_phase.py")
SURVIVORS_SEC = 10.0


def wait_until(happened: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def start(workshop: Workshop, path: Path) -> subprocess.Popen[bytes]:
    """A flow's process that trains the phase."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, RUN_PHASE, workshop.describe(path)], env=environment, stderr=subprocess.PIPE)


def scratch(workshop: Workshop) -> Path:
    return workshop.folder / ".scratch"


def newest_step(workshop: Workshop) -> int:
    return max((int(path.name[11:]) for path in scratch(workshop).glob("checkpoint-????????")), default=0)


def ranks(workshop: Workshop) -> list[int]:
    return [int(path.read_text()) for path in scratch(workshop).glob("rank-*.pid")]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def result_bytes(output: Output) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (*output.paths(), output.path / "manifest.json")}


def losses(output: Output) -> list[float]:
    return [line["loss"] for line in map(json.loads, output.file("metrics.jsonl").read_text().splitlines()) if "loss" in line]


def test_a_phase_leaves_its_model_and_what_shows_it(trained: Output, workshop: Workshop) -> None:
    assert [record.name for record in trained.files] == [
        "ema.safetensors", "generated.png", "metrics.jsonl", "model.json", "weights.safetensors"
    ]  # fmt: skip
    assert trained.counts == {"images_seen": 96, "skipped_steps": 0, "steps": 12}
    assert read_model(trained).config == workshop.pipeline.train.model
    # Four captions of held-out pictures, each generated at 16 px.
    assert len(trained.summary["prompts"]) == 4
    assert Image.open(trained.file("generated.png")).size == (64, 16)
    assert not (trained.path / ".scratch").exists()


def test_signals_kills_and_damage_change_no_byte(trained: Output, workshop: Workshop, tmp_path: Path) -> None:
    elsewhere = workshop.elsewhere(tmp_path / "store")

    # SIGTERM: saved, and said so.
    flow = start(elsewhere, tmp_path / "told.json")
    wait_until(lambda: newest_step(elsewhere) >= 1)
    flow.send_signal(signal.SIGTERM)
    _, errors = flow.communicate(timeout=60)
    assert flow.returncode == 75
    assert b"stopped on a signal after saving" in errors
    saved = newest_step(elsewhere)
    assert not any(map(is_alive, ranks(elsewhere)))

    # SIGKILL of the flow's process alone: no rank outlives it.
    flow = start(elsewhere, tmp_path / "told.json")
    wait_until(lambda: newest_step(elsewhere) > saved or (scratch(elsewhere) / "result").exists())
    flow.kill()
    flow.wait()
    wait_until(lambda: not any(map(is_alive, ranks(elsewhere))), SURVIVORS_SEC)
    assert not (elsewhere.folder / "manifest.json").exists()

    # A flipped bit in the newest checkpoint, a torn one beside it.
    weights = scratch(elsewhere) / f"checkpoint-{newest_step(elsewhere):08d}" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (scratch(elsewhere) / ".tmp-checkpoint-00000099").mkdir()

    assert result_bytes(elsewhere.train()) == result_bytes(trained)


def test_two_ranks_see_the_same_batches_and_die_together(trained: Output, workshop: Workshop, tmp_path: Path) -> None:
    pair = workshop.changed(num_processes=2).elsewhere(tmp_path / "store")
    assert pair.identity.digest == workshop.identity.digest
    flow = start(pair, tmp_path / "told.json")
    wait_until(lambda: newest_step(pair) >= 2)
    first, second = ranks(pair)
    flow.kill()
    flow.wait()
    wait_until(lambda: not is_alive(first) and not is_alive(second), SURVIVORS_SEC)

    output = pair.train()
    assert losses(output) == pytest.approx(losses(trained), rel=1e-4)
    assert output.counts == trained.counts


def test_no_second_trainer_while_a_rank_lives(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hdm.training.launch.LOCK_WAIT_SEC", 0.2)
    elsewhere = workshop.elsewhere(tmp_path / "store")
    scratch(elsewhere).mkdir(parents=True)
    with locked(scratch(elsewhere) / "training.lock", "what a rank would hold", shared=True), pytest.raises(HdmError, match="another run"):
        elsewhere.train()


def test_an_error_in_a_rank_comes_back_as_it_was(workshop: Workshop, tmp_path: Path) -> None:
    model = {**workshop.pipeline.train.model.to_dict(), "channels": 8}
    wrong = workshop.changed(model=model).elsewhere(tmp_path / "store")
    with pytest.raises(HdmError, match="latents have 4 channels, the model 8") as caught:
        wrong.train()
    assert caught.value.exit_code == 2
    assert caught.value.do == "set train.model.channels to 4"
