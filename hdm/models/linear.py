"""The linear layer of the blocks: on the CPU in float32, oneDNN's product instead of the one that torch takes.

Torch hands float32 products to its BLAS and bfloat16 ones to oneDNN. Where BLAS is MKL, oneDNN is 5 to 15 % quicker in float32 too for
outputs and the input's gradient, as long as the sequence is long against the width (bench/RESULTS.md); the weight's gradient stays
with BLAS. The numbers are the same to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hdm.models.fused import swiglu

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """`nn.Linear` in all but speed."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, as `torch.nn.functional.linear`."""
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)


def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu(a)·b for the halves a, b of the linear layer's output: (…, D) → (…, M) with a weight (2M, D)."""
    if torch.is_grad_enabled() or not _by_onednn(x, weight):
        return swiglu(linear(x, weight, bias))
    # Both as part of the products' last step: the halves are not written, read and written once more.
    (weight_a, weight_b), (bias_a, bias_b) = weight.chunk(2), bias.chunk(2)
    return torch.ops.mkldnn._linear_pointwise.binary(x, _product(x, weight_a, bias_a, "swish"), weight_b, bias_b, "mul")


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN
        and x.is_cpu
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.T) if of_x else None,
            rows.T @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
