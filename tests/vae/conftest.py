"""Small pictures with something to learn in them, and small autoencoders of every class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKLFlux2, AutoencoderTiny

from hdm.demo.bootstrap import scene_examples
from hdm.models.small_autoencoder import new_autoencoder
from hdm.models.tiny_autoencoder import PooledAutoencoderTiny


@pytest.fixture(scope="session")
def scenes() -> list[np.ndarray]:
    """Scenes with a shorter side of 32 px."""
    return [example.pixels for example in scene_examples(72, 32)]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(kind: type = AutoencoderTiny) -> Any:
    return kind(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )


def every_class() -> dict[str, Any]:
    """One small untrained autoencoder of each class that is known, 4 × downscale."""
    torch.manual_seed(0)
    blocks = dict(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
    )
    return {
        "AutoencoderKL": new_autoencoder(4, (8, 8, 8)),
        "AutoencoderKLFlux2": AutoencoderKLFlux2(
            **blocks, layers_per_block=1, latent_channels=4, norm_num_groups=4
        ),
        "AutoencoderDC": AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
        ),
        "AutoencoderTiny": tiny(),
        "PooledAutoencoderTiny": tiny(PooledAutoencoderTiny),
    }
