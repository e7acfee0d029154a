"""Statistics in the place where each class keeps them: loaded again, latents have mean 0 and
deviation 1.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hdm.models.autoencoder import load_autoencoder
from hdm.vae.normalization import write_statistics
from hdm.vae.run import write_autoencoder
from tests.vae.conftest import every_class


@pytest.mark.parametrize("name", every_class())
def test_written_and_loaded_again(name: str, tmp_path: Path) -> None:
    model = every_class()[name]
    generator = torch.Generator().manual_seed(0)
    spread, centre = (
        torch.tensor([0.5, 2.0, 3.0, 1.0]).view(1, 4, 1, 1),
        torch.tensor([4.0, 0.0, -1.0, 0.5]).view(1, 4, 1, 1),
    )
    raw = [torch.randn(8, 4, side, side, generator=generator) * spread + centre for side in (8, 6)]
    write_statistics(model, raw)
    written = write_autoencoder(model, tmp_path / "there")
    assert "_name_or_path" not in (written / "config.json").read_text()
    autoencoder = load_autoencoder(str(written))
    assert autoencoder.identity["class"] == name
    latent = torch.cat(
        [autoencoder.normalize(batch).transpose(0, 1).flatten(1) for batch in raw], dim=1
    )
    if name in (
        "AutoencoderDC",
        "AutoencoderTiny",
    ):  # one factor for all channels, and one shift where the class has it
        assert latent.std().item() == pytest.approx(1, abs=1e-4)
        assert name == "AutoencoderDC" or latent.mean().item() == pytest.approx(0, abs=1e-4)
    else:
        torch.testing.assert_close(latent.mean(1), torch.zeros(4), atol=2e-3, rtol=0)
        torch.testing.assert_close(latent.std(1), torch.ones(4), atol=2e-3, rtol=0)


def test_a_pooled_tiny_autoencoder_comes_back_with_its_weights(tmp_path: Path) -> None:
    model = every_class()["PooledAutoencoderTiny"].eval()
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = model.encode(image).latents
    torch.testing.assert_close(
        load_autoencoder(str(write_autoencoder(model, tmp_path / "there"))).encode(image), expected
    )
