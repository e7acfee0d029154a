"""Training takes any registered denoiser, and nothing of XUT's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from hdm.architecture import XUTConfig
from hdm.model_files.file_names import EMA, WEIGHTS
from hdm.models.denoiser import register
from hdm.models.xut import XUT
from hdm.training.process.guard import StopRequest
from hdm.training.trainer import Trainer
from tests.training.mixer import Mixer
from tests.training.workshop import Workshop


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    threads = torch.get_num_threads()
    register(XUTConfig, Mixer)
    yield
    register(XUTConfig, XUT)
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_another_denoiser_trains_with_every_option_and_its_weights_are_written(
    workshop: Workshop, tmp_path: Path
) -> None:
    job = workshop.changed(dropout=0.1).job(tmp_path)
    trainer = Trainer(job, StopRequest(), "cpu")
    begun = {
        name: value.clone() for name, value in trainer.state.trainable.model.state_dict().items()
    }
    assert trainer.run()
    written = load_file(job.result / WEIGHTS)
    assert written.keys() == begun.keys() == Mixer(job.settings.train.model).state_dict().keys()
    assert all(not torch.equal(written[name], value) for name, value in begun.items())
    assert load_file(job.result / EMA).keys() == begun.keys()
