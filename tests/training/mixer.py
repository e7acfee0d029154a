"""A denoiser that is no XUT: each block mixes an image token with the mean of the text, nothing
else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from hdm.architecture import XUTConfig
from hdm.models.denoiser import Denoiser, DenoiserBlock


class MixerBlock(DenoiserBlock):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, z: Tensor, given: Tensor) -> Tensor:
        return z + F.silu(self.linear(z + given))


class Mixer(Denoiser):
    def __init__(self, config: XUTConfig) -> None:
        super().__init__()
        self.architecture = config
        patch = config.patch_size**2 * config.channels
        self.enter = nn.Linear(patch, config.width)
        self.text = nn.Linear(config.text_width + 1, config.width)
        self.layers = nn.ModuleList(MixerBlock(config.width) for _ in range(2))
        self.leave = nn.Linear(config.width, patch)

    def blocks(self) -> Iterator[DenoiserBlock]:
        return iter(cast("list[DenoiserBlock]", list(self.layers)))

    def forward(self, latent: Tensor, timestep: Tensor, text: Tensor, **_: Any) -> Tensor:
        p = self.config.patch_size
        given = self.text(
            F.pad(text.mean(1), (0, 1)) + F.pad(timestep[:, None], (text.shape[2], 0))
        )
        z = self.enter(F.pixel_unshuffle(latent, p).flatten(2).mT)
        for block in self.blocks():
            z = block(z, given[:, None])
        height, width = (side // p for side in latent.shape[2:])
        return F.pixel_shuffle(self.leave(z).mT.unflatten(2, (height, width)), p)
