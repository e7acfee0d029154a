"""The linear layer of the blocks: on the CPU in float32, oneDNN's product instead of the one that torch takes.

Torch hands float32 products to its BLAS and bfloat16 ones to oneDNN. Where BLAS is MKL, oneDNN is 5 to 15 % quicker in float32 too for
outputs and the input's gradient, as long as the sequence is long against the width, and twice as quick on AMD's newer CPUs, of whose
vectors MKL uses half (bench/RESULTS.md). The weight's gradient is left to BLAS but on these. The numbers are the same to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hdm.models.cpu import mkl_takes_half_vectors
from hdm.models.fused import swiglu

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
WEIGHTS_TOO = mkl_takes_half_vectors()
"""Whether oneDNN multiplies for the weight's gradient as well. A rule by the CPU's kind, not a measurement: a training that is resumed must
choose as it did before."""
LONG = 256
"""Elements a row of the weight's gradient must have for oneDNN to be the quicker one."""


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
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _by_onednn(x, weight):
        return swiglu(linear(x, weight, bias))
    # Both as part of the products' last step: the halves are not written, read and written once more.
    (weight_a, weight_b), (bias_a, bias_b) = weight.chunk(2), bias.chunk(2)
    return torch.ops.mkldnn._linear_pointwise.binary(
        x, _pointwise(x, weight_a, bias_a, "swish"), weight_b, bias_b, "mul"
    )


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN
        and x.is_cpu
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return (
        _opaque(x, weight, bias) if torch.compiler.is_compiling() else _pointwise(x, weight, bias)
    )


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")


@torch.library.custom_op("hdm::product", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """For the compiler, which otherwise wants to write oneDNN's call itself, and can for constant weights alone."""
    return _pointwise(x, weight, bias)


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


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
        grad = grad.contiguous()  # for part of a wider tensor oneDNN has no quick product
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.T) if of_x else None,
            _weight_gradient(rows, x.flatten(0, -2)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """gradᵀ x, (outputs, inputs), of (rows, outputs) and (rows, inputs)."""
    outputs, inputs = grad.shape[-1], x.shape[-1]
    if not WEIGHTS_TOO or max(outputs, inputs) < LONG or not len(x):
        return grad.T @ x
    # oneDNN is up to twice as quick where the longer side is the result's row.
    return _product(x.T, grad.T).T if outputs > inputs else _product(grad.T, x.T)
