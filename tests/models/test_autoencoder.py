from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hdm.errors import InputError
from hdm.models.autoencoder import load_autoencoder


def saved(folder: Path, **options: object) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        latent_channels=3,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **options,
    )
    model.save_pretrained(folder)
    return folder


def test_statistics_by_channel(tmp_path: Path) -> None:
    mean, std = [1.0, -2.0, 0.5], [2.0, 4.0, 0.25]
    autoencoder = load_autoencoder(str(saved(tmp_path, latents_mean=mean, latents_std=std, scaling_factor=0.5)))
    assert (autoencoder.channels, autoencoder.downscale) == (3, 4)
    assert autoencoder.identity == {"class": "AutoencoderKL", "scale": [0.5, 0.25, 4.0], "shift": mean}
    raw = torch.randn(2, 3, 4, 6)
    for channel in range(3):
        expected = (raw[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(autoencoder.normalize(raw)[:, channel], expected)
    torch.testing.assert_close(autoencoder.denormalize(autoencoder.normalize(raw)), raw)


def test_one_factor_and_one_shift_for_all_channels(tmp_path: Path) -> None:
    autoencoder = load_autoencoder(str(saved(tmp_path, scaling_factor=0.3611, shift_factor=0.1159)))
    raw = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(autoencoder.normalize(raw), (raw - 0.1159) * 0.3611)


def test_encode_gives_the_posterior_mean_and_decode_an_image(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    autoencoder = load_autoencoder(str(saved(tmp_path)))
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    raw = autoencoder.encode(image)
    assert raw.shape == (2, 3, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(raw, AutoencoderKL.from_pretrained(tmp_path).encode(image).latent_dist.mean)
    decoded = autoencoder.decode(raw * 50)
    assert decoded.shape == image.shape
    assert decoded.abs().max() <= 1


def test_sides_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        load_autoencoder(str(saved(tmp_path))).encode(torch.zeros(1, 3, 16, 18))


def test_statistics_for_other_channels(tmp_path: Path) -> None:
    saved(tmp_path, latents_mean=[0.0, 0.0], latents_std=[1.0, 1.0])
    with pytest.raises(InputError, match=r"3 latent channels but statistics of 2"):
        load_autoencoder(str(tmp_path))


def test_another_class_and_cut_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_autoencoder(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(InputError, match="VQModel, not AutoencoderKL"):
        load_autoencoder(str(tmp_path))


def test_weights_of_another_shape(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "latent_channels": 5}))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_autoencoder(str(tmp_path))
