"""A bootstrap that was stopped or killed goes on inside a training, and ends with the bytes of one
that was left alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hdm.bootstrap.bootstrapping import Plan, bootstrap
from hdm.bootstrap.examples import Example
from hdm.demo.bootstrap import SceneQuality, scene_examples
from hdm.errors import InputError, SavedOnSignal
from hdm.training.state import checkpoint

PLAN = Plan(autoencoder_images=40, contrastive_images=160, language_captions=256, quality_images=32)
STEPS = {"text_encoder": 4, "autoencoder": 5, "contrastive": 5}


class Killed(BaseException):
    """As sudden as SIGKILL: nobody handles it."""


def run(out: Path, **options: Any) -> dict[str, Any]:
    options = {"plan": PLAN, "size_px": 32, "channels": 4, **options}
    return bootstrap(scene_examples(48, 32), out, source="scenes", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(out)
    return contents(out)


class Checkpoints:
    """Notes which checkpoints are written, and does something after some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[tuple[str, int]] = []
        self.after: dict[int, Callable[[], None]] = {}
        self.save = checkpoint.save
        monkeypatch.setattr(checkpoint, "save", self)

    def __call__(self, folder: Path, step: int, *arguments: Any) -> Path:
        path = self.save(folder, step, *arguments)
        self.written.append((folder.name, step))
        self.after.pop(len(self.written), lambda: None)()
        return path


def kill() -> None:
    raise Killed


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> Checkpoints:
    return Checkpoints(monkeypatch)


def test_killed_in_each_training_it_goes_on_to_the_same_bytes(
    undisturbed: dict[str, bytes], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    checkpoints.after = {2: kill, 7: kill, 12: kill}
    for threads in (1, 2, 2):  # on the way it keeps the number that it began with
        torch.set_num_threads(threads)
        with pytest.raises(Killed):
            run(out, checkpoint_sec=0)
    torch.set_num_threads(1)
    run(out, checkpoint_sec=0)
    assert contents(out) == undisturbed
    once = [(name, step + 1) for name, steps in STEPS.items() for step in range(steps)]
    assert list(dict.fromkeys(checkpoints.written)) == once
    # The end of a training is saved once more; no other step was taken twice.
    assert len(checkpoints.written) == len(once) + len(STEPS)


def test_damage_costs_a_step_or_a_component_but_no_byte(
    undisturbed: dict[str, bytes], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    checkpoints.after = {8: kill}
    with pytest.raises(Killed):
        run(out, checkpoint_sec=0)
    newest = max((out / ".scratch" / "autoencoder").iterdir()) / "weights.safetensors"
    for file in (newest, out / "text_encoder" / "model.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    run(out, checkpoint_sec=0)
    assert contents(out) == undisturbed


def test_a_signal_in_a_training_saves_and_says_what_to_do(
    undisturbed: dict[str, bytes], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    checkpoints.after = {7: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    with pytest.raises(SavedOnSignal, match="run the same command again"):
        run(out, checkpoint_sec=0)
    assert checkpoints.written[-1][0] == "autoencoder"
    run(out)
    assert contents(out) == undisturbed


def test_a_signal_before_there_is_anything_to_save(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Example]:
        yield from scene_examples(20, 32)
        os.kill(os.getpid(), signal.SIGINT)
        yield from scene_examples(20, 32)

    with pytest.raises(SavedOnSignal, match="before there was anything to save"):
        bootstrap(interrupted(), tmp_path / "out", source="scenes", plan=PLAN, size_px=32)
    assert not (tmp_path / "out").exists()


def test_other_options_or_pictures_do_not_go_on_there(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    checkpoints.after = {2: kill}
    with pytest.raises(Killed):
        run(out, checkpoint_sec=0)
    with pytest.raises(InputError, match="another recipe: seed, minutes changed"):
        run(out, seed=1, minutes=5)
    with pytest.raises(InputError, match="pictures changed"):
        bootstrap(scene_examples(47, 32), out, source="scenes", plan=PLAN, size_px=32, channels=4)


def test_minutes_that_are_over_end_every_training_and_measuring_early(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left of the minutes counts, not the plan: here of a clock that ran out before it
    began.
    """
    check = partial(SceneQuality, count=32)
    record = run(tmp_path / "out", minutes=5, begun=time.monotonic() - 3600, check=check)
    taken = {part: schedule[-1][1] for part, schedule in record["schedules"].items()}
    assert set(taken) == set(asdict(PLAN))
    assert max(taken.values()) <= 2
    assert record["measured_on"]["scenes"] == {"items": 16, "of": 32}
    assert "scenes 16 of 32" in caplog.text
    all_of_them = run(tmp_path / "all", check=check)
    assert all_of_them["measured_on"]["scenes"] == {"items": 32, "of": 32}


def test_the_command_ends_with_75_on_sigterm(tmp_path: Path) -> None:
    words = ["--source", "scenes", "--max-pictures", "48", "--size-px", "32"]
    command = [sys.executable, "-m", "hdm.commands.cli", "bootstrap", *words]
    command += ["--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "out" / ".scratch" / "threads.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 75, said
    assert said.splitlines()[-1].strip() == "→ run the same command again to go on"


def test_two_at_once_do_not_mix_in_one_folder(
    undisturbed: dict[str, bytes], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused = []

    def another() -> None:
        command = f"from tests.bootstrap.test_stopped import *; run(Path({str(out)!r}))"
        other = subprocess.run([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True)
        refused.append(other.stderr)

    checkpoints.after = {3: another}
    run(out)
    assert "LockedError: another run works on" in refused[0]
    assert f"pid {os.getpid()}" in refused[0]
    assert "--out" in refused[0]
    assert contents(out) == undisturbed


def test_a_source_too_slow_for_the_minutes_is_cut_and_goes_on_with_the_same_pictures(
    checkpoints: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def slow() -> Iterator[Example]:
        begun = time.monotonic()
        for number, example in enumerate(scene_examples(200, 32)):
            if number == 40:
                time.sleep(max(0.0, begun + 60 * 0.25 * 0.1 - time.monotonic()) + 0.01)
            yield example

    def some(**options: Any) -> dict[str, Any]:
        options = {"minutes": 0.1, "size_px": 32, "channels": 4, **options}
        return bootstrap(slow(), tmp_path / "out", source="scenes", **options)

    checkpoints.after = {4: kill}  # after the three of the trial
    with pytest.raises(Killed):
        some()
    told = re.search("took the first ([0-9]+) pictures", caplog.text)
    assert told
    taken = int(told[1])
    assert taken < 48
    record = some()
    assert record["recipe"]["pictures"] == taken - len(range(0, taken, taken // 4))
    assert record["measured_on"]["autoencoder"] == {"items": 4, "of": 4}
