"""Small models that several tests build, train, write and read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hdm.architecture import XUTConfig
from hdm.models.xut import XUT

if TYPE_CHECKING:
    from transformers import Qwen3Config

WIDTHS: dict[str, Any] = dict(width=8, num_heads=2, head_size=4, mlp_width=8, text_width=8)
BLOCKS: dict[str, Any] = dict(depth=1, enc_blocks=1, dec_blocks=1, prev_blocks=1, post_blocks=1)
TINY = XUTConfig(**WIDTHS, **BLOCKS)
SMALL = replace(TINY, width=32, head_size=16, mlp_width=24, text_width=10)
TRAINED = {
    **TINY.to_dict(),
    "width": 16,
    "head_size": 8,
    "mlp_width": 32,
    "patch_size": 2,
    "text_mask": "masked",
}
"""The settings of a model for trainings of a few steps; channels and text width are the data's."""


def shaken(config: XUTConfig) -> XUT:
    """A model whose every tensor matters: none is left at zero or one."""
    torch.manual_seed(0)
    model = XUT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def changes(config: XUTConfig, base: XUTConfig) -> str:
    """What differs from a base, as the name of a test's case."""
    fields = config.to_dict().items()
    changed = [f"{name}={value}" for name, value in fields if value != getattr(base, name)]
    return ",".join(changed) or "base"


def text_config(**options: Any) -> Qwen3Config:
    """A text encoder of two layers, for the 13 words of `tests.word_tokenizer`."""
    from transformers import Qwen3Config

    sizes: dict[str, Any] = dict(vocab_size=13, hidden_size=24, intermediate_size=32, head_dim=12)
    heads: dict[str, Any] = dict(num_attention_heads=2, num_key_value_heads=1)
    return Qwen3Config(**{**sizes, **heads, "num_hidden_layers": 2, **options})


def save_autoencoder(folder: Path, **options: Any) -> Path:
    """Save an autoencoder as hub models are: random weights, 4 px a latent pixel each way."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        mid_block_add_attention=False,
        **{"latent_channels": 3, **options},
    )
    model.save_pretrained(folder)
    return folder
