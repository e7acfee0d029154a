"""`hdm ema` on the output of a real training, up to a picture of `hdm sample`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from typer.testing import CliRunner

from hdm.commands.cli import app
from hdm.training.process.guard import StopRequest
from hdm.training.trainer import train
from tests.training.workshop import make_workshop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """components/, and trained/: the output of a phase."""
    folder = tmp_path_factory.mktemp("ema")
    workshop, threads = make_workshop(folder), torch.get_num_threads()
    job = workshop.cached().changed(checkpoint_sec=1e7, validate_every=None).job(folder / "job")
    assert train(job, StopRequest())
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    shutil.copytree(job.result, folder / "trained")
    return folder


def hdm(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, words)])
    return result.exit_code, result.output


def test_a_kept_length_comes_back_and_is_sampled_from(folder: Path, tmp_path: Path) -> None:
    code, said = hdm("ema", folder / "trained", "--length", 0.2, "--out", tmp_path / "made")
    assert code == 0, said
    assert "from 6 snapshots" in said
    made, kept = (
        load_file(tmp_path / "made/ema.safetensors"),
        load_file(folder / "trained/ema-0.2-00000012.safetensors"),
    )
    for name, value in kept.items():
        torch.testing.assert_close(made[name], value, atol=1e-6, rtol=1e-5)
    assert made.keys() == load_file(folder / "trained/ema.safetensors").keys()

    parts = [
        "--autoencoder",
        folder / "components/autoencoder",
        "--text-encoder",
        folder / "components/text_encoder",
    ]
    words = ["--prompt", "red circle", "--steps", 2, "--out", tmp_path / "pictures"]
    code, said = hdm("sample", "--weights", tmp_path / "made", *parts, *words)
    assert code == 0, said
    assert list((tmp_path / "pictures").rglob("*.png"))


def test_what_cannot_be_made_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    shutil.copy(folder / "trained/model.json", tmp_path / "there")
    for words, said in [
        ((tmp_path / "there", "--length", 0.1, "--out", tmp_path / "new"), "no snapshots"),
        ((folder / "trained", "--length", 0.4, "--out", tmp_path / "new"), "at most 0.28"),
        ((folder / "trained", "--length", 0.1, "--out", tmp_path / "there"), "is there already"),
        ((tmp_path, "--length", 0.1, "--out", tmp_path / "new"), "there is no model.json"),
    ]:
        code, shown = hdm("ema", *words)
        assert (code, said in shown) == (2, True), shown
    assert not (tmp_path / "new").exists()
