"""Training in processes of its own: what it writes, and what signals and kills do to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hdm.errors import DoesNotFitError, HdmError, SavedOnSignal
from hdm.model_files.opening import open_model
from hdm.models.components import weights_digest
from hdm.store import locked
from hdm.training import phase
from hdm.training.process.job import outcome_error, read_outcome, write_outcome
from tests.training.here import train_here
from tests.training.workshop import FILES, Workshop

PROJECT = Path(__file__).parents[2]
RUN_PHASE = Path(__file__).with_name("run_phase.py")
SNAPSHOTS = [f"ema-{length}-{step:08d}.safetensors" for length in (0.1, 0.2) for step in (4, 8, 12)]
PATIENCE_SEC = 600.0  # on a busy machine; nothing here is a claim about speed
FAILS_AT_STEP_5 = """
import os, sys
if "hdm.training.worker" in sys.orig_argv and os.environ.get("RANK") == "1":
    from hdm.training.state.position import Position
    after = Position.after
    def failing(self, *given, **named):
        if self.step == 5:
            raise ZeroDivisionError("planted")
        return after(self, *given, **named)
    Position.after = failing
"""
STOPS_THE_FLOW_AT_THE_END = """
import os, signal, sys, time
if "hdm.training.worker" in sys.orig_argv:
    from hdm.training.process import job
    written = job.write_outcome
    def then_stopped(scratch, rank, state, *rest):
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1)  # the flow's process passes it on
        written(scratch, rank, state, *rest)
    job.write_outcome = then_stopped
"""


def wait_until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SEC
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def start(workshop: Workshop, path: Path) -> subprocess.Popen[bytes]:
    """A flow's process that trains the phase, for tests that kill it."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(
        [sys.executable, RUN_PHASE, workshop.describe(path)],
        env=environment,
        stderr=subprocess.PIPE,
    )


@contextlib.contextmanager
def then(happened: Callable[[], Any], act: Callable[[], None]) -> Iterator[None]:
    """Do that from another thread when it has happened, while this one trains as a flow's process
    does.
    """

    def watch() -> None:
        wait_until(happened)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def stop_this_process(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def plant(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Python run this first in every process that is started from now on."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(PROJECT)]))


def scratch(workshop: Workshop) -> Path:
    return workshop.folder / ".scratch"


def newest_step(workshop: Workshop) -> int:
    return max(
        (int(path.name[11:]) for path in scratch(workshop).glob("checkpoint-????????")), default=0
    )


def ranks(workshop: Workshop) -> list[int]:
    return [int(path.read_text()) for path in scratch(workshop).glob("rank-*.pid")]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture(scope="module")
def cached(workshop: Workshop) -> Workshop:
    """With text embeddings from the cache, so that a process starts quickly."""
    return workshop.cached()


@pytest.fixture(scope="module")
def undisturbed(cached: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training writes if nobody disturbs it, in this process."""
    job = cached.changed(checkpoint_sec=1e7).job(tmp_path_factory.mktemp("undisturbed"))
    train_here(job)
    return job.result


def losses(path: Path) -> list[float]:
    return [
        line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line
    ]


def test_signals_kills_and_damage_change_no_byte(
    undisturbed: Path, cached: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cached.elsewhere(tmp_path / "store")

    # SIGTERM: saved, and said so.
    with (
        then(lambda: newest_step(here) >= 1, stop_this_process(signal.SIGTERM)),
        pytest.raises(SavedOnSignal, match="stopped on a signal after saving"),
    ):
        here.train()
    assert not any(map(is_alive, ranks(here)))
    saved = newest_step(here)

    # SIGKILL of the flow's process alone: its rank does not outlive it.
    flow = start(here, tmp_path / "told.json")
    wait_until(lambda: newest_step(here) > saved or (scratch(here) / "result").exists())
    flow.kill()
    flow.communicate()
    wait_until(lambda: not any(map(is_alive, ranks(here))))
    assert not (here.folder / "manifest.json").exists()

    # A flipped bit in the newest checkpoint.
    weights = scratch(here) / f"checkpoint-{newest_step(here):08d}" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    monkeypatch.setattr(phase, "run_training", train_here)
    output = here.train()
    assert [record.name for record in output.files] == [
        *SNAPSHOTS,
        "ema.safetensors",
        "generated.png",
        "metrics.jsonl",
        "model.json",
        "weights.safetensors",
    ]
    assert [
        name
        for name in (*FILES, *SNAPSHOTS)
        if output.file(name).read_bytes() != (undisturbed / name).read_bytes()
    ] == []
    assert output.summary == json.loads((undisturbed / "summary.json").read_bytes())
    assert output.counts == {"images_seen": 96, "skipped_steps": 0, "steps": 12}
    assert not scratch(here).exists()


def test_the_files_show_what_was_learnt(undisturbed: Path, workshop: Workshop) -> None:
    assert open_model(undisturbed).weights.config == workshop.pipeline.train.model
    # Four captions of held-out pictures, each generated at 16 px.
    assert json.loads((undisturbed / "summary.json").read_bytes())["prompts"] == [
        "red square",
        "blue circle",
        "red circle",
        "blue square",
    ]
    assert Image.open(undisturbed / "generated.png").size == (64, 16)
    told = json.loads((undisturbed / "model.json").read_bytes())
    assert (told["resolution"], told["max_tokens"]) == (16, 8)
    components = workshop.pipeline.components
    assert told["components"] == {
        name: weights_digest(getattr(components, name)) for name in ("autoencoder", "text_encoder")
    }
    assert told["component_names"] == {}, "they are folders of this machine"


def test_two_ranks_go_on_after_one_died_and_die_with_their_flow(
    undisturbed: Path, cached: Workshop, tmp_path: Path
) -> None:
    pair = cached.changed(num_processes=2).elsewhere(tmp_path / "store")
    assert pair.identity.digest == cached.identity.digest
    flow = start(pair, tmp_path / "told.json")
    wait_until(lambda: newest_step(pair) >= 2)
    first = ranks(pair)
    assert len(first) == 2
    os.kill(first[-1], signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, first)))
    before = newest_step(pair)
    wait_until(lambda: newest_step(pair) >= before + 3)
    second = ranks(pair)
    assert len(second) == 2
    flow.kill()
    _, errors = flow.communicate()
    assert b"going on from step" in errors
    wait_until(lambda: not any(map(is_alive, second)))
    # Both saw the batches that one process sees; two sum gradients in another order.
    seen = losses(pair.folder / "metrics.jsonl")
    assert len(seen) >= newest_step(pair) - 1, "a checkpoint carries the line that is still due"
    assert seen == pytest.approx(losses(undisturbed / "metrics.jsonl")[: len(seen)], rel=1e-3)


def test_a_training_that_dies_without_a_step_further_is_not_started_again(
    cached: Workshop, tmp_path: Path
) -> None:
    here = cached.changed(checkpoint_sec=1e7).elsewhere(tmp_path / "store")
    with (
        then(lambda: ranks(here), lambda: os.kill(ranks(here)[0], signal.SIGKILL)),
        pytest.raises(HdmError, match="SIGKILL often means that memory ran out") as caught,
    ):
        here.train()
    assert caught.value.exit_code == 1


def test_two_ranks_end_a_phase_together_and_hand_on_its_best_weights(
    cached: Workshop, tmp_path: Path
) -> None:
    first = cached.pipeline.model_dump(mode="json")["train"]["phases"][0]
    spoiling = {
        **first,
        "optimizer": {"learning_rate": 0.03, "schedule": "constant", "betas": [0.9, 0.9]},
    }
    choices = {
        "keep": "best",
        "patience": 2,
        "validate_every": 2,
        "validate_raw": True,
        "watch": "raw_validation_loss",
    }
    pair = cached.changed(
        phases=[spoiling], num_processes=2, generate_every=32, **choices
    ).elsewhere(tmp_path / "store")
    output = pair.train()
    best = output.summary["best_step"]
    assert output.counts["steps"] == best + 4 < 12
    held_out = [
        json.loads(line)
        for line in output.file("metrics.jsonl").read_text().splitlines()
        if "raw_validation_loss" in line
    ]
    assert min(held_out, key=lambda line: line["raw_validation_loss"])["step"] == best
    milestones = [
        f"ema-{length}-{step:08d}.safetensors"
        for step in (4, 8, best + 4)
        for length in (0.1, 0.2)
        if step <= best + 4
    ]
    pictures = [f"generated-{seen:010d}.png" for seen in (32, 64, 96) if seen <= 8 * (best + 4)]
    assert output.summary["milestones"] == sorted({*milestones, *pictures})
    assert {record.name for record in output.files} == {*FILES, *milestones, *pictures}


def test_variables_of_another_launcher_change_no_byte(
    undisturbed: Path,
    cached: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    launched = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
        "RANK": "0",
        "WORLD_SIZE": "2",
    }
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    here = cached.elsewhere(tmp_path / "store")
    with (
        then(lambda: newest_step(here) >= 4, stop_this_process(signal.SIGTERM)),
        pytest.raises(SavedOnSignal),
    ):
        here.train()
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in caplog.text
    # Losses and norms of gradients and weights at every step.
    told = (here.folder / "metrics.jsonl").read_bytes()
    assert len(told.splitlines()) >= 3
    assert (undisturbed / "metrics.jsonl").read_bytes().startswith(told)


def test_a_signal_before_the_first_step_claims_no_saving(cached: Workshop, tmp_path: Path) -> None:
    here = cached.elsewhere(tmp_path / "store")
    with (
        then(lambda: ranks(here), stop_this_process(signal.SIGINT)),
        pytest.raises(SavedOnSignal, match="no checkpoint had been saved yet") as caught,
    ):
        here.train()
    assert newest_step(here) == 0, "the signal came too late for this test"
    assert "after saving" not in str(caught.value)


def test_a_signal_in_the_last_moment_of_a_phase_stops_the_run_and_loses_nothing(
    undisturbed: Path, cached: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next phase would start as if nobody had asked."""
    here = cached.elsewhere(tmp_path / "store")
    plant(STOPS_THE_FLOW_AT_THE_END, tmp_path, monkeypatch)
    with pytest.raises(SavedOnSignal, match="as it ended; all of it is saved"):
        here.train()
    assert not (here.folder / "manifest.json").exists()
    lines = len(losses(scratch(here) / "result" / "metrics.jsonl"))
    monkeypatch.setattr(phase, "run_training", train_here)
    output = here.train()
    assert output.counts["steps"] == 12 == lines
    for name in ("weights.safetensors", "metrics.jsonl"):
        assert output.file(name).read_bytes() == (undisturbed / name).read_bytes()


def test_an_exception_in_a_worker_is_shown_and_not_tried_again(
    cached: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rank 1 fails, rank 0 only loses its peer; checkpoints lie before that."""
    here = cached.changed(num_processes=2).elsewhere(tmp_path / "store")
    plant(FAILS_AT_STEP_5, tmp_path, monkeypatch)
    with pytest.raises(HdmError, match="ZeroDivisionError: planted") as caught:
        here.train()
    assert caught.value.exit_code == 1
    assert newest_step(here) >= 1
    assert "going on from step" not in caplog.text
    assert "ZeroDivisionError: planted" in (scratch(here) / "training.log").read_text()


def test_no_second_trainer_while_a_rank_lives(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hdm.training.process.launch.LOCK_WAIT_SEC", 0.2)
    elsewhere = workshop.elsewhere(tmp_path / "store")
    scratch(elsewhere).mkdir(parents=True)
    with (
        locked(scratch(elsewhere) / "training.lock", "what a rank would hold", shared=True),
        pytest.raises(HdmError, match="another run"),
    ):
        elsewhere.train()


def test_the_error_of_a_rank_comes_back_as_it_was(tmp_path: Path) -> None:
    write_outcome(tmp_path, 0, "saved")
    write_outcome(tmp_path, 1, "error", DoesNotFitError("no room", where="there", do="make room"))
    error = outcome_error(read_outcome(tmp_path))
    assert isinstance(error, DoesNotFitError)
    assert str(error) == "no room (there)\n  → make room"
