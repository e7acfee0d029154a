"""Checkpoints that are written while the tensors they were taken from go on changing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from hdm.errors import DoesNotFitError
from hdm.training.state import checkpoint
from hdm.training.state.checkpoint_writer import CheckpointWriter

SIZE = 1 << 20


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "weights": {"a": torch.full((SIZE,), value), "b": torch.full((3, 2), value).T},
        "optimizer": {},
    }


@pytest.mark.parametrize("ready", [True, False], ids=["copied", "in turn"])
def test_what_was_there_when_it_was_asked_for_is_written(tmp_path: Path, ready: bool) -> None:
    now, writer, told = state(1.0), CheckpointWriter(tmp_path), list[Path | None]()
    if ready:
        writer.make_ready(now)
    now["optimizer"]["a:momentum"] = torch.full((2,), 1.0)  # comes later than the buffers
    for step in (1, 2, 3):
        for values in now.values():
            for value in values.values():
                value.fill_(step)
        writer.write(step, now, b"line\n", {"step": step}, lambda: told.append(_newest(tmp_path)))
        for values in now.values():
            for value in values.values():
                value.fill_(-1)  # the next step
    writer.wait()
    found = checkpoint.newest(tmp_path)
    assert found
    assert found.state["step"] == 3
    for name, values in now.items():
        assert found.tensors(name).keys() == values.keys()
        assert all(bool((value == 3).all()) for value in found.tensors(name).values())
    assert [path and path.name for path in told] == [
        f"checkpoint-{step:08d}" for step in (1, 2, 3)
    ], "called when it is there"
    assert len(list(tmp_path.iterdir())) == checkpoint.KEEP
    writer.close()


def _newest(folder: Path) -> Path | None:
    found = checkpoint.newest(folder)
    return found.path if found else None


def test_the_step_goes_on_while_it_is_written(tmp_path: Path) -> None:
    now, writer, gone_on, written = (
        state(1.0),
        CheckpointWriter(tmp_path),
        threading.Event(),
        list[bool](),
    )
    writer.make_ready(now)
    writer.write(1, now, b"", {}, lambda: written.append(gone_on.wait(60)))
    gone_on.set()  # had `write` waited for the thread, nobody would ever have come here
    writer.wait()
    assert written == [True]
    writer.close()


def test_a_full_disk_is_told_at_the_next_look_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, writer = state(1.0), CheckpointWriter(tmp_path)
    writer.make_ready(now)
    writer.write(1, now, b"", {}, lambda: None)
    writer.wait()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    writer.write(2, now, b"", {}, lambda: None)
    with pytest.raises(DoesNotFitError, match="no space left"):
        writer.wait()
    monkeypatch.undo()
    found = checkpoint.newest(tmp_path)
    assert found
    assert found.path.name == "checkpoint-00000001"
    writer.close()


def test_without_memory_for_a_copy_it_says_so_and_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Tensors that take no memory and would take more than any machine has.
    vast = {"weights": {"a": torch.zeros(1).expand(1 << 50)}}
    writer = CheckpointWriter(tmp_path)
    writer.make_ready(vast)
    small = state(2.0)
    writer.write(1, small, b"", {}, lambda: None)
    assert _newest(tmp_path) is not None, "it waited"
    assert "training waits while checkpoints are written" in caplog.text
    writer.close()
