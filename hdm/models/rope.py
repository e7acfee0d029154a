"""Rotary positions on two axes, with learned frequencies (HDM, arXiv 2509.06068; RoPE, arXiv 2104.09864).

Shapes: B batch, S tokens, N heads, K head size. Consecutive features (2m, 2m+1) of a head are one pair, turned by one angle.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from hdm.models.fused import place

LOG_SPACED = (math.pi / 2, 8 * math.pi)
"""Lowest and highest start frequency of `log_spaced`: from half a period across the picture to one in every two of 16 cells."""


class RotaryPositions(nn.Module):
    """A learned table of log-frequencies, (N, K/4, 2) with the axis (y, x) last.

    Start: `pi` puts ln π everywhere, as published; `log_spaced` spreads frequencies evenly in the logarithm
    over heads and features, so that some heads see near tokens apart and some far ones.
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
            table = spaced.view(shape[1], shape[0]).T.unsqueeze(-1).repeat(1, 1, 2)
        self.freqs = nn.Parameter(table)

    def forward(
        self, qkv: Tensor, positions: Tensor, norm: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, S, 3, N, K) apart, (B, S, N, K), the first two turned by the angles of their positions.

        Args:
            positions: (B or 1, S, 2).
            norm: weights (2, K) of the norms that queries and keys pass through before; None: there are none.
        """
        return place(qkv, norm, positions, self.freqs)
