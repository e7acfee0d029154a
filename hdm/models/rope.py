"""Rotary positions on two axes, with learned frequencies (HDM, arXiv 2509.06068; RoPE, arXiv
2104.09864).

Shapes: B batch, S tokens, N heads, K head size. Consecutive features (2m, 2m+1) of a head are one
pair, turned by one angle.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

LOG_SPACED = (math.pi / 2, 8 * math.pi)
"""Lowest and highest initial frequency of `log_spaced`: from half a period across the picture to
one period per two of 16 cells.
"""


class RotaryPositions(nn.Module):
    """A learned table of log-frequencies, (N, K/4, 2) with the axis (y, x) last.

    Initialisation: `pi` sets ln π everywhere, as published; `log_spaced` spaces frequencies evenly
    in the logarithm over heads and features, so that each head resolves near tokens by some of its
    features and far ones by others.
    """

    def __init__(
        self, num_heads: int, head_size: int, start: Literal["pi", "log_spaced"] = "pi"
    ) -> None:
        super().__init__()
        shape = num_heads, head_size // 4, 2
        if start == "pi":
            table = torch.full(shape, math.log(math.pi))
        else:
            spaced = torch.linspace(
                math.log(LOG_SPACED[0]), math.log(LOG_SPACED[1]), shape[0] * shape[1]
            )
            # Each head gets every N-th frequency, and so the whole range.
            table = spaced.view(shape[1], shape[0]).T.unsqueeze(-1).repeat(1, 1, 2)
        self.freqs = nn.Parameter(table)

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        """Rotate each pair (u, v) of a head to (u·cos - v·sin, v·cos + u·sin), in float32.

        Pair 2j + s turns by the angle positions[s]·exp(freqs[j, s]).

        Args:
            features: (B, S, G, N, K), G groups that are rotated alike: queries and keys.
            positions: (B or 1, S, 2).

        Returns:
            (B, S, G, N, K) float32.
        """
        frequencies = self.freqs.float().exp()
        # (B, S, 1, 1, 2) · (N, K/4, 2) → (B, S, 1, N, K/2): one angle per pair, for all groups.
        angles = (positions[:, :, None, None] * frequencies).flatten(-2)[:, :, None]
        cos = angles.cos()
        sin = angles.sin()
        u, v = features.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((u * cos - v * sin, v * cos + u * sin), -1).flatten(-2)
