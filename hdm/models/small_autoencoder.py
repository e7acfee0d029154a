"""A small AutoencoderKL for training from scratch: 8 × downscale, fully convolutional."""

from __future__ import annotations

from typing import Any

import torch

CHANNELS = 8
WIDTHS = (16, 16, 32, 64)
DOWNSCALE = 2 ** (len(WIDTHS) - 1)
START_LOG_VARIANCE = -6.0


def new_autoencoder(channels: int = CHANNELS, widths: tuple[int, ...] = WIDTHS) -> Any:
    """An untrained AutoencoderKL, without attention, so that it accepts any size.

    Args:
        channels: of a latent.
        widths: of the stages, the widest last; every stage but the last halves.
    """
    from diffusers import AutoencoderKL

    model: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    # Start with a nearly sure posterior: noise of size 1 would drown the first thousand steps.
    with torch.no_grad():
        model.encoder.conv_out.bias[channels:] = START_LOG_VARIANCE
    return model
