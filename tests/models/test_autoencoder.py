from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hdm.errors import InputError
from hdm.models.autoencoder import load_autoencoder
from tests.small_models import save_autoencoder


def test_statistics_by_channel(tmp_path: Path) -> None:
    mean, std = [1.0, -2.0, 0.5], [2.0, 4.0, 0.25]
    autoencoder = load_autoencoder(
        str(save_autoencoder(tmp_path, latents_mean=mean, latents_std=std, scaling_factor=0.5))
    )
    assert (autoencoder.channels, autoencoder.downscale) == (3, 4)
    assert autoencoder.identity == {
        "class": "AutoencoderKL",
        "scale": [0.5, 0.25, 4.0],
        "shift": mean,
    }
    raw = torch.randn(2, 3, 4, 6)
    for channel in range(3):
        expected = (raw[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(autoencoder.normalize(raw)[:, channel], expected)
    torch.testing.assert_close(autoencoder.denormalize(autoencoder.normalize(raw)), raw)


def test_one_factor_and_one_shift_for_all_channels(tmp_path: Path) -> None:
    folder = save_autoencoder(tmp_path, scaling_factor=0.3611, shift_factor=0.1159)
    autoencoder = load_autoencoder(str(folder))
    raw = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(autoencoder.normalize(raw), (raw - 0.1159) * 0.3611)


def test_encode_gives_the_posterior_mean_and_decode_an_image(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    autoencoder = load_autoencoder(str(save_autoencoder(tmp_path)))
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    raw = autoencoder.encode(image)
    assert raw.shape == (2, 3, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            raw, AutoencoderKL.from_pretrained(tmp_path).encode(image).latent_dist.mean
        )
    decoded = autoencoder.decode(raw * 50)
    assert decoded.shape == image.shape
    assert decoded.abs().max() <= 1


def test_sides_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        load_autoencoder(str(save_autoencoder(tmp_path))).encode(torch.zeros(1, 3, 16, 18))


def test_statistics_for_other_channels(tmp_path: Path) -> None:
    save_autoencoder(tmp_path, latents_mean=[0.0, 0.0], latents_std=[1.0, 1.0])
    with pytest.raises(InputError, match=r"3 latent channels but statistics of 2"):
        load_autoencoder(str(tmp_path))


def test_another_class_and_cut_weights(tmp_path: Path) -> None:
    save_autoencoder(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_autoencoder(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(InputError, match="VQModel, not one of AutoencoderKL"):
        load_autoencoder(str(tmp_path))


def test_weights_of_another_shape(tmp_path: Path) -> None:
    save_autoencoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "latent_channels": 5}))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_autoencoder(str(tmp_path))


def test_a_draw_from_the_posterior_has_its_mean_and_spread(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    autoencoder = load_autoencoder(str(save_autoencoder(tmp_path)))
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([autoencoder.encode(image, generator) for _ in range(500)])
    with torch.no_grad():
        posterior = AutoencoderKL.from_pretrained(tmp_path).encode(image).latent_dist
    torch.testing.assert_close(draws.mean(0), posterior.mean[0], atol=0.25, rtol=0)
    torch.testing.assert_close(draws.std(0), posterior.std[0], atol=0.15, rtol=0.15)


def _tiny() -> object:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3, latent_channels=5,
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), scaling_factor=0.5,
    )  # fmt: skip


def _deep() -> object:
    from diffusers import AutoencoderDC

    sizes = {
        "block_out_channels": (8, 16, 16),
        "block_types": ("ResBlock",) * 3,
        "layers_per_block": (1, 1, 1),
        "qkv_multiscales": ((), (), ()),
    }
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        scaling_factor=0.25,
        **{
            f"{part}_{name}": value
            for part in ("encoder", "decoder")
            for name, value in sizes.items()
        },
    )


@pytest.mark.parametrize(
    ("make", "channels", "downscale", "scale"), [(_tiny, 5, 4, 0.5), (_deep, 4, 4, 0.25)]
)
def test_autoencoders_without_a_posterior(
    make: object, channels: int, downscale: int, scale: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make()  # type: ignore[operator]
    model.save_pretrained(tmp_path)
    autoencoder = load_autoencoder(str(tmp_path))
    assert (autoencoder.channels, autoencoder.downscale) == (channels, downscale)
    assert autoencoder.identity["scale"] == [scale] * channels
    image = torch.rand(1, 3, 16, 24) * 2 - 1
    raw = autoencoder.encode(image)
    assert raw.shape == (1, channels, 4, 6)
    assert autoencoder.decode(raw).shape == image.shape
    with torch.no_grad():
        torch.testing.assert_close(
            autoencoder.decode(raw), model.eval().decode(raw).sample.clamp(-1, 1)
        )


def test_flux_2_keeps_its_statistics_by_place_in_a_patch(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(0)
    model: Any = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    # Latents whose channels differ in mean and spread, cut into 2×2 patches as FLUX.2 does.
    raw = torch.randn(4, 4, 32, 32) * torch.tensor([1.0, 2.0, 0.5, 3.0]).view(
        1, 4, 1, 1
    ) + torch.tensor([0.0, 1.0, -2.0, 5.0]).view(1, 4, 1, 1)
    raw[:, :, ::2, ::2] += 1  # and by place
    patches = raw.view(4, 4, 16, 2, 16, 2).permute(0, 1, 3, 5, 2, 4).reshape(4, 16, 16, 16)
    model.bn.running_mean.copy_(patches.mean((0, 2, 3)))
    model.bn.running_var.copy_(patches.var((0, 2, 3), unbiased=False))
    model.save_pretrained(tmp_path)
    latent = load_autoencoder(str(tmp_path)).normalize(raw)
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        latent.std((0, 2, 3), unbiased=False), torch.ones(4), atol=1e-3, rtol=0
    )


def test_latents_of_other_channels_are_refused_with_both_counts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 channels, the autoencoder AutoencoderKL 3"):
        load_autoencoder(str(save_autoencoder(tmp_path))).decode(torch.zeros(1, 4, 2, 2))


def test_tiles_of_a_real_size_and_none_too_small(tmp_path: Path) -> None:
    autoencoder = load_autoencoder(str(save_autoencoder(tmp_path)))
    image = torch.rand(1, 3, 64, 96) * 2 - 1
    raw = autoencoder.encode(image, tile_px=32)
    assert raw.shape == (1, 3, 16, 24)
    assert autoencoder.decode(raw, tile_px=32).shape == image.shape
    with pytest.raises(InputError, match="too small"):
        autoencoder.encode(image, tile_px=8)
