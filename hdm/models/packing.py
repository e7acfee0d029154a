"""Packed tokens: those of all samples in one row, without padding.

Token-wise layers then compute next to nothing for padding. Shapes: B batch, L image tokens, S
tokens of a sample with padding, N packed tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

STEP = 64
"""N is a multiple of it: oneDNN prepares itself anew for each size of a product."""


class Packing:
    """Where the tokens of a padded batch (B, S, D) lie in the packed one, (1, N, D): the image
    tokens of all samples, then the text tokens of all, then at least one row of zeros.

    Args:
        mask: (B, S) bool, False at padding, which no image token is.
        num_image: L; in each sample, image tokens come first.
    """

    def __init__(self, mask: Tensor, num_image: int) -> None:
        self.num_image = num_image
        places = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
        text = places[:, num_image:][mask[:, num_image:]]
        rows = torch.cat((places[:, :num_image].flatten(), text))
        size = (len(rows) // STEP + 1) * STEP
        packed = torch.full_like(places, size - 1)  # padding reads zeros
        packed.view(-1)[rows] = torch.arange(len(rows), device=mask.device)
        self._maps = _Maps(rows, packed, size)

    def pack(self, tokens: Tensor) -> Tensor:
        """(B, S, D) → (1, N, D)."""
        packed: Tensor = _Pack.apply(tokens, self._maps)
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, D) → (B, S, D), at padding what the last packed token is."""
        tokens: Tensor = _Unpack.apply(packed, self._maps)
        return tokens

    def pack_image(self, tokens: Tensor) -> Tensor:
        """Image tokens alone, (B, L, D) → (1, B·L, D), as they lie in the packed ones."""
        return tokens.flatten(0, 1)[None]

    def spread(self, value: Tensor) -> Tensor:
        """One value a sample, (B, 1, D), for each of its packed tokens: (1, N, D)."""
        return self.pack(value.expand(-1, self._maps.packed.shape[1], -1))


class _Maps:
    """Each way's map. Rows never repeat, so gradients go back by the other one; that of torch's
    index_select would be added up row by row.

    Args:
        rows: of the packed tokens but zeros, in the flattened (B·S) sequence.
        packed: of the tokens, in the packed sequence, (B, S).
        size: N.
    """

    def __init__(self, rows: Tensor, packed: Tensor, size: int) -> None:
        self.rows = rows
        self.packed = packed
        self.size = size

    def pack(self, tokens: Tensor) -> Tensor:
        packed = tokens.new_empty(self.size, tokens.shape[-1])
        count = len(self.rows)
        torch.index_select(tokens.flatten(0, 1), 0, self.rows, out=packed[:count])
        packed[count:] = 0
        return packed[None]

    def unpack(self, packed: Tensor) -> Tensor:
        flat = packed[0].index_select(0, self.packed.view(-1))
        return flat.view(*self.packed.shape, -1)


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, maps: _Maps) -> Tensor:
        ctx.maps = maps
        return maps.pack(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # The rows of zeros lead to no loss, so padding gets their gradient, which is zero.
        return ctx.maps.unpack(grad), None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, maps: _Maps) -> Tensor:
        ctx.maps = maps
        return maps.unpack(packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.maps.pack(grad), None
