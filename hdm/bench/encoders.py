"""Encoders of pictures and texts in published sizes, with random weights."""

from __future__ import annotations

from typing import Any

from hdm.planning.counts import PUBLISHED_TEXT, SDXL_ENCODER, ImageEncoder, LanguageModel

TINY_ENCODER = ImageEncoder((32, 64), 1, 4)
TINY_TEXT = LanguageModel(64, 2, 4, 2, 16, 128)
VOCABULARY = 1000  # embeddings are looked up: their number costs no time


def encoder_sizes(*, tiny: bool) -> ImageEncoder:
    """SDXL's, or small ones."""
    return TINY_ENCODER if tiny else SDXL_ENCODER


def text_sizes(*, tiny: bool) -> LanguageModel:
    """Qwen3-0.6B's, or small ones."""
    return TINY_TEXT if tiny else PUBLISHED_TEXT["Qwen/Qwen3-0.6B"]


def kl_autoencoder(*, tiny: bool) -> Any:
    """An autoencoder in SDXL's format."""
    from diffusers import AutoencoderKL

    sizes = encoder_sizes(tiny=tiny)
    stages = len(sizes.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.blocks,
        latent_channels=sizes.latent_channels,
    )


def tiny_autoencoder() -> Any:
    """An autoencoder of the TAESD family, which is small in any case."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny()


def language_model(*, tiny: bool) -> Any:
    """A language model in Qwen3's format, without its head."""
    from transformers import Qwen3Config, Qwen3Model

    sizes = text_sizes(tiny=tiny)
    return Qwen3Model(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.key_heads,
            head_dim=sizes.head_size,
            intermediate_size=sizes.mlp_width,
        )
    )
