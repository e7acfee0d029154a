"""A real trained autoencoder, as published in two files, on real pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hdm.errors import InputError
from hdm.models.autoencoder import Autoencoder, load_autoencoder

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TAESD = DATA / "autoencoder" / "taesd"
needs_data = pytest.mark.skipif(not TAESD.is_dir(), reason="needs ../shared/data")


def psnr(autoencoder: Autoencoder, picture: Image.Image, tile_px: int | None = None) -> float:
    width, height = (side // 8 * 8 for side in picture.size)
    pixels = np.asarray(picture.convert("RGB").crop((0, 0, width, height)))
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    error = (
        autoencoder.decode(autoencoder.encode(image, tile_px=tile_px), tile_px=tile_px) - image
    ).square().mean().item() / 4
    return -10 * float(np.log10(error))


def photographs(count: int) -> list[Image.Image]:
    paths = sorted((DATA / "photos" / "coco51").rglob("*.jpg"))[:count]
    return [
        Image.open(path).convert("RGB").resize((320, 216), Image.Resampling.LANCZOS)
        for path in paths
    ]


def published(decoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A decoder's state as its authors count layers: a clamp comes first."""
    return {
        f"{int(key.partition('.')[0]) + 1}.{key.partition('.')[2]}": value
        for key, value in decoder.state_dict().items()
    }


@needs_data
def test_real_pictures_come_back_as_well_as_its_authors_files_can() -> None:
    autoencoder = load_autoencoder(str(TAESD))
    assert (autoencoder.channels, autoencoder.downscale) == (32, 8)
    assert (
        np.mean([psnr(autoencoder, photograph) for photograph in photographs(4)]) > 28
    )  # 16 with the pooled branch in a wrong place
    emoji = Image.new("RGB", (128, 128), "white")
    emoji.paste(
        picture := Image.open(DATA / "emoji" / "noto128" / "images" / "emoji_u1f600.png").convert(
            "RGBA"
        ),
        mask=picture,
    )
    assert psnr(autoencoder, emoji) > 28


@needs_data
def test_one_file_as_on_the_hub_is_the_same_autoencoder(tmp_path: Path) -> None:
    """`madebyollin/taef2` there is one file under diffusers' names; its decoder's layers are
    counted without the clamp.
    """
    state = {}
    for part in ("encoder", "decoder"):
        for key, value in torch.load(TAESD / f"taef2_{part}.pth").items():
            number, _, rest = key.partition(".")
            state[f"{part}.layers.{int(number) - (part == 'decoder')}.{rest}"] = value
    save_file(state, tmp_path / "taef2.safetensors")
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    raw = load_autoencoder(str(TAESD)).encode(image)
    one = load_autoencoder(str(tmp_path))
    assert torch.equal(one.encode(image), raw)
    assert torch.equal(one.decode(raw), load_autoencoder(str(TAESD)).decode(raw))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is not a tiny autoencoder"):
        load_autoencoder(str(tmp_path))


@needs_data
def test_in_tiles_nearly_as_well() -> None:
    autoencoder = load_autoencoder(str(TAESD))
    photograph = photographs(1)[0]
    assert psnr(autoencoder, photograph, tile_px=128) > psnr(autoencoder, photograph) - 0.5


@needs_data
def test_halves_that_do_not_belong_together(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    (tmp_path / "one_encoder.pth").write_bytes((TAESD / "taef2_encoder.pth").read_bytes())
    other: Any = AutoencoderTiny(latent_channels=4)
    torch.save(published(other.decoder.layers), tmp_path / "one_decoder.pth")
    with pytest.raises(InputError, match=r"encoder': 32, 'the decoder': 4"):
        load_autoencoder(str(tmp_path))


def test_a_plain_pair_is_read_as_diffusers_own(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    model: Any = AutoencoderTiny(latent_channels=4)
    torch.save(model.encoder.layers.state_dict(), tmp_path / "taesd_encoder.pth")
    decoder = {
        f"{int(key.partition('.')[0]) + 1}.{key.partition('.')[2]}": value
        for key, value in model.decoder.layers.state_dict().items()
    }
    torch.save(decoder, tmp_path / "taesd_decoder.pth")
    (tmp_path / "config.json").write_text(
        '{"latents_mean": [1, 2, 3, 4], "latents_std": [2, 2, 2, 2]}'
    )
    autoencoder = load_autoencoder(str(tmp_path))
    assert autoencoder.identity["shift"] == [1, 2, 3, 4]
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        raw = model.encode(image).latents
        torch.testing.assert_close(autoencoder.encode(image), raw)
        torch.testing.assert_close(autoencoder.decode(raw), model.decode(raw).sample.clamp(-1, 1))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    for part in ("encoder", "decoder"):
        (tmp_path / f"x_{part}.pth").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_autoencoder(str(tmp_path))
