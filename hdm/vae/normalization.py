"""Measure the statistics that normalise raw latents to mean 0 and deviation 1, and write them where
each class of autoencoder keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def write_statistics(model: Any, raw: Sequence[Tensor]) -> None:
    """Write statistics of raw latents into an autoencoder.

    By channel in the configuration (AutoencoderKL, the pooled tiny one); of 2 × 2 patches in a
    batch norm (AutoencoderKLFlux2); or one factor, and one shift where the class knows it, for all
    channels (AutoencoderDC, AutoencoderTiny).

    Args:
        model: a diffusers autoencoder.
        raw: batches (B, C, h, w), of whatever sizes.
    """
    if getattr(model, "bn", None) is not None:
        # AutoencoderKLFlux2 normalises 2 × 2 patches by a batch norm.
        mean, std = moments(torch.cat([_patches(batch) for batch in raw], dim=1))
        model.bn.running_mean.copy_(mean)
        # The batch norm adds its eps to the variance before it takes the root.
        model.bn.running_var.copy_(std.square() - model.bn.eps)
        return
    mean, std = moments(torch.cat([by_channel(batch) for batch in raw], dim=1))
    if "latents_mean" in model.config:
        model.register_to_config(latents_mean=_rounded(mean), latents_std=_rounded(std))
        return
    # The class keeps one value for all channels, though their spreads differ.
    mean, std = moments(torch.cat([batch.flatten() for batch in raw])[None])
    shift = {"shift_factor": _rounded(mean)[0]} if "shift_factor" in model.config else {}
    model.register_to_config(scaling_factor=_rounded(1 / std)[0], **shift)


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row: (C, N) → (C,) and (C,), float64."""
    whole = values.double()
    return whole.mean(1), whole.std(1)


def by_channel(raw: Tensor) -> Tensor:
    """(B, C, h, w) → (C, B·h·w)."""
    return raw.transpose(0, 1).flatten(1)


def _patches(raw: Tensor) -> Tensor:
    """(B, C, h, w) → (4·C, B·h/2·w/2), with a channel's four positions adjacent. An odd last row or
    column is dropped.
    """
    height = raw.shape[-2] // 2
    width = raw.shape[-1] // 2
    cut = raw[..., : 2 * height, : 2 * width].unflatten(-1, (width, 2)).unflatten(-3, (height, 2))
    return by_channel(cut.permute(0, 1, 3, 5, 2, 4).flatten(1, 3))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
