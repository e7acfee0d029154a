"""Training from weights on disk: a published file, taken in by `hdm weights import`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from typer.testing import CliRunner

from hdm.commands.cli import app
from hdm.models.xut import XUT
from hdm.training import phase
from hdm.training.process.guard import StopRequest
from hdm.training.trainer import Trainer
from tests.model_files import golden_files
from tests.training.here import train_here
from tests.training.workshop import Workshop, lively


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def imported(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command wrote, of 16-bit weights."""
    folder, config = tmp_path_factory.mktemp("published"), workshop.pipeline.train.model
    model = lively(XUT(config))
    tensors = {f"unet.model.{name}": value.half() for name, value in model.state_dict().items()}
    published = golden_files.write(folder / "published.safetensors", tensors, config.to_dict())
    words = ["weights", "import", str(published), "--out", str(folder / "models")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return folder / "models"


def begun(workshop: Workshop, folder: Path) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    trainer = Trainer(workshop.job(folder), StopRequest(), "cpu")
    trainer.prefetcher.close()
    return trainer.state.trainable.model.state_dict()


def test_a_training_begins_with_imported_weights_and_they_move(
    workshop: Workshop, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phase, "run_training", train_here)
    started = workshop.cached().changed(start={"weights": str(imported)})
    output = started.elsewhere(tmp_path / "store").train()
    truth = load_file(imported / "published.safetensors")
    weights, average = (
        load_file(output.file(f"{name}.safetensors")) for name in ("weights", "ema")
    )
    assert {f"unet.model.{name}" for name in weights} == truth.keys()
    new = begun(workshop.cached(), tmp_path / "new")
    for found in (weights, average):
        for name, _ in XUT(workshop.pipeline.train.model).named_parameters():
            value, given = found[name], truth[f"unet.model.{name}"].float()
            assert not torch.equal(value, given), "it has been trained"
            if value.ndim > 1:  # some new vectors are the same whatever the seed
                assert (value - given).norm() < (value - new[name]).norm()


def test_the_weights_before_the_first_step_are_those_of_the_file(
    workshop: Workshop, imported: Path, tmp_path: Path
) -> None:
    truth = load_file(imported / "published.safetensors")
    for number, path in enumerate((imported, imported / "published.safetensors")):
        found = begun(workshop.changed(start={"weights": str(path)}), tmp_path / str(number))
        for name, value in found.items():
            assert torch.equal(value, truth[f"unet.model.{name}"].float()), name


def test_the_digest_follows_the_weights_and_not_their_place(
    workshop: Workshop, imported: Path, tmp_path: Path
) -> None:
    def digest(path: Path) -> str:
        return workshop.changed(start={"weights": str(path)}).identity.digest

    content = (imported / "published.safetensors").read_bytes()
    moved, other = tmp_path / "moved.safetensors", tmp_path / "other.safetensors"
    moved.write_bytes(content)
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert digest(imported) == digest(moved) != workshop.identity.digest
    assert digest(other) != digest(moved)
    assert workshop.changed(start=None).identity.digest == workshop.identity.digest


def test_later_phases_start_from_the_one_before(
    workshop: Workshop, imported: Path, tmp_path: Path
) -> None:
    started = workshop.changed(start={"weights": str(imported)})
    first = started.pipeline.model_dump(mode="json")["train"]["phases"][0]
    two = started.changed(phases=[{**first, "resolution": 8}, first])
    job = replace(two.job(tmp_path), number=1)
    trainer = Trainer(job, StopRequest(), "cpu")
    trainer.prefetcher.close()
    found = trainer.state.trainable.model.state_dict()
    truth = load_file(imported / "published.safetensors")
    given = {name: truth[f"unet.model.{name}"].float() for name in found}
    assert any(not torch.equal(value, given[name]) for name, value in found.items())
