"""Packed tokens: those of all samples one after the other, without padding.

Shapes: B batch, S tokens of a sample with padding, N packed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Way = Callable[[Tensor], Tensor]
STEP = 64
"""N is a multiple of it: oneDNN compiles a product for each new size."""


class Packing:
    """Where the tokens of a padded batch (B, S, D) lie in the packed one, (N, D), which ends with
    rows of zeros.

    Args:
        mask: (B, S) bool, False at padding.
    """

    def __init__(self, mask: Tensor) -> None:
        self._shape = mask.shape
        self._rows = mask.flatten().nonzero().flatten()

    def pack(self, tokens: Tensor) -> Tensor:
        """(B, S, D) → (N, D)."""
        packed: Tensor = _Moved.apply(tokens, self.gather, self.scatter)
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """(N, D) → (B, S, D), zero at padding."""
        tokens: Tensor = _Moved.apply(packed, self.scatter, self.gather)
        return tokens

    def gather(self, tokens: Tensor) -> Tensor:
        """`pack`, without a gradient."""
        count = len(self._rows)
        packed = tokens.new_empty(-(-count // STEP) * STEP, tokens.shape[-1])
        torch.index_select(tokens.flatten(0, 1), 0, self._rows, out=packed[:count])
        packed[count:] = 0
        return packed

    def scatter(self, packed: Tensor) -> Tensor:
        """`unpack`, without a gradient."""
        flat = packed.new_zeros(self._shape.numel(), packed.shape[-1])
        flat.index_copy_(0, self._rows, packed[: len(self._rows)])
        return flat.view(*self._shape, -1)


class _Moved(torch.autograd.Function):
    """Tokens moved by one of Packing's two ways. As no row repeats, their gradient goes back by the
    other; that of torch's index_select would be added up row by row.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, there: Way, back: Way) -> Tensor:
        ctx.back = back
        return there(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grad), None, None
