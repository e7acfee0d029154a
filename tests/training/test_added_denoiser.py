"""A denoiser of another package: one new file with a plain torch model, and its entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import hdm
from hdm.config import Pipeline
from hdm.errors import ConfigError, InputError
from hdm.extensions import extensions
from hdm.generation.text_to_image import TextToImage
from hdm.model_files.weights import save_weights
from hdm.models.settings import Components
from hdm.training.process.guard import StopRequest
from hdm.training.trainer import Trainer
from tests.training.test_trainer import _fresh_process, with_phase  # noqa: F401
from tests.training.workshop import CHANNELS, TEXT_WIDTH, Workshop

NEW_FILE = """
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import nn

from hdm.architecture import XUTConfig
from hdm.models.denoiser import Denoiser, DenoiserBlock, register


@dataclass(frozen=True)
class StripesConfig(XUTConfig):
    kind: ClassVar[str] = "stripes"
    layers: int = 3


class Stripe(DenoiserBlock):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, z, given):
        return z + F.silu(self.linear(z + given))


class Stripes(Denoiser):
    def __init__(self, config):
        super().__init__()
        self.architecture = config
        patch = config.patch_size**2 * config.channels
        self.enter = nn.Linear(patch, config.width)
        self.text = nn.Linear(config.text_width + 1, config.width)
        self.stripes = nn.ModuleList(Stripe(config.width) for _ in range(config.layers))
        self.leave = nn.Linear(config.width, patch)

    def blocks(self):
        return iter(self.stripes)

    def forward(self, latent, timestep, text, **_):
        size = self.config.patch_size
        time = F.pad(timestep[:, None], (text.shape[2], 0))
        given = self.text(F.pad(text.mean(1), (0, 1)) + time)
        z = self.enter(F.pixel_unshuffle(latent, size).flatten(2).mT)
        for block in self.blocks():
            z = block(z, given[:, None])
        height, width = (side // size for side in latent.shape[2:])
        return F.pixel_shuffle(self.leave(z).mT.unflatten(2, (height, width)), size)


register(StripesConfig, Stripes)
"""
ENTRY_POINT = "[hdm.denoisers]\nstripes = added_stripes:StripesConfig\n"
METADATA = "Metadata-Version: 2.1\nName: added-stripes\nVersion: 1.0\n"
SIZES = {
    "width": 16,
    "num_heads": 2,
    "head_size": 8,
    "text_width": TEXT_WIDTH,
    "channels": CHANNELS,
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package, as pip installs it."""
    site = tmp_path_factory.mktemp("site")
    (site / "added_stripes.py").write_text(NEW_FILE)
    about = site / "added_stripes-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(METADATA)
    (about / "entry_points.txt").write_text(ENTRY_POINT)
    sys.path.insert(0, str(site))
    extensions.cache_clear()
    yield
    sys.path.remove(str(site))
    sys.modules.pop("added_stripes", None)
    extensions.cache_clear()


@pytest.fixture(scope="module")
def trained(package: None, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    few = with_phase(workshop.cached(), num_images=32, micro_batch=None)
    settings = {"kind": "stripes", "layers": 2, **SIZES}
    job = few.changed(model=settings).job(tmp_path_factory.mktemp("stripes"))
    torch.use_deterministic_algorithms(True)
    trainer = Trainer(job, StopRequest(), "cpu")
    assert trainer.run()
    return trainer


def test_it_trains_and_is_saved_and_opened(trained: Trainer) -> None:
    model = trained.state.trainable.model
    assert type(model).__name__ == "Stripes"
    assert len(list(model.blocks())) == 2
    opened = hdm.open_model(trained.job.result)
    assert opened.card.config == model.config
    denoiser = opened.denoiser()
    assert type(denoiser) is type(model)
    averaged = trained.state.trainable.averaged.state_dict()
    own = denoiser.state_dict()
    assert own.keys() == averaged.keys()
    assert all(torch.equal(value, averaged[name]) for name, value in own.items())
    begun = type(model)(model.config).state_dict()
    assert all(not torch.equal(value, begun[name]) for name, value in own.items())


def test_it_makes_pictures(trained: Trainer) -> None:
    components = Components(
        text_encoder=trained.job.text_encoder, autoencoder=trained.job.autoencoder
    )
    loaded = hdm.load_text_to_image(trained.job.result, components, torch.device("cpu"))
    made: TextToImage = loaded.text_to_image
    assert type(made.denoiser).__name__ == "Stripes"
    assert (trained.job.result / "generated.png").is_file()
    latent = torch.randn((1, CHANNELS, 4, 4), generator=torch.Generator().manual_seed(0))
    text = torch.ones((1, 3, TEXT_WIDTH))
    ours = made.denoiser(latent, torch.ones(1), text)
    averaged = trained.state.trainable.averaged(latent, torch.ones(1), text)
    np.testing.assert_allclose(ours.detach().numpy(), averaged.detach().numpy(), atol=1e-6)


def test_its_weights_are_one_file_that_says_what_they_are(trained: Trainer, tmp_path: Path) -> None:
    opened = hdm.open_model(trained.job.result)
    save_weights(tmp_path / "stripes.safetensors", opened.weights)
    again = hdm.open_model(tmp_path / "stripes.safetensors")
    assert again.card.config == opened.card.config
    assert type(again.denoiser()).__name__ == "Stripes"


def test_its_settings_are_read_told_and_in_the_digest(package: None) -> None:
    values = {"train": {"model": {"kind": "stripes", "layers": 2, **SIZES}}}
    pipeline = Pipeline.model_validate(values)
    dumped = pipeline.model_dump(mode="json")
    assert dumped["train"]["model"]["kind"] == "stripes"
    assert Pipeline.model_validate(dumped) == pipeline
    covered = pipeline.train.result_fields()["model"]
    assert covered["kind"] == "stripes"
    assert covered["layers"] == 2
    assert "kind" not in Pipeline().train.result_fields()["model"]
    with pytest.raises(ConfigError, match="unknown STRIPES fields"):
        Pipeline.model_validate({"train": {"model": {"kind": "stripes", "layer": 2}}})
    with pytest.raises(ConfigError, match="denoiser of kind 'strips'") as caught:
        Pipeline.model_validate({"train": {"model": {"kind": "strips"}}})
    assert "stripes" in str(caught.value.do)


def test_a_diffusers_folder_of_it_is_refused(trained: Trainer, tmp_path: Path) -> None:
    from hdm.diffusers_pipeline.writing import write_folder
    from hdm.models.components import resolve

    opened = hdm.open_model(trained.job.result)
    with pytest.raises(InputError, match="of kind stripes"):
        write_folder(tmp_path / "out", opened, resolve(Components()))
