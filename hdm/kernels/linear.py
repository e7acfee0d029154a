"""Linear layers by oneDNN: float32 on the CPU.

torch gives float32 products to its BLAS and bfloat16 ones to oneDNN. Where BLAS is MKL, oneDNN is
5 to 15 % faster in float32 too, for outputs and for the input's gradient, as long as the sequence
is long compared to the width. On recent AMD CPUs, where MKL uses half of each vector, it is twice
as fast (bench/RESULTS.md). Elsewhere BLAS computes the weight's gradient. Results agree to
rounding.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_INFO = Path("/proc/cpuinfo")


def mkl_takes_half_vectors() -> bool:
    """Whether this is an AMD CPU with 512-bit units (Zen 5 on, family 26).

    MKL multiplies with 256 bits on all of AMD's.
    """
    about: dict[str, str] = {}
    with contextlib.suppress(OSError), CPU_INFO.open() as lines:
        # The first of what may be hundreds of cores.
        for line in itertools.takewhile(str.strip, lines):
            name, _, value = line.partition(":")
            about[name.strip()] = value.strip()
    return (
        about.get("vendor_id") == "AuthenticAMD"
        and int(about.get("cpu family", 0)) >= 26
        and "avx512f" in about.get("flags", "").split()
    )


# torch registers this undocumented operator for its own compiler, so another release may lack it.
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
WEIGHTS_TOO = mkl_takes_half_vectors()
"""Whether oneDNN computes the weight's gradient as well.

Decided by the kind of CPU and not measured: a resumed training must choose as it did before.
"""
LONG = 256
"""From this row length of the weight's gradient on, oneDNN is the faster one."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, as `torch.nn.functional.linear`."""
    if not by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        product: Tensor = _Linear.apply(x, weight, bias)
        return product
    return _product(x, weight, bias)


def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu(a)·b of the halves a, b of x Wᵀ + b: (…, D) → (…, M), W (2M, D). No gradients.

    Activation and product are part of the matrix products' last step, so the halves are not
    written, read and written once more.
    """
    weight_a, weight_b = weight.chunk(2)
    bias_a, bias_b = bias.chunk(2)
    silu = _pointwise(x, weight_a, bias_a, "swish")
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, silu, weight_b, bias_b, "mul")
    return product


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these: float32 on the CPU, outside autocast."""
    return (
        ONEDNN
        and x.is_cpu
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    multiply = _opaque if torch.compiler.is_compiling() else _pointwise
    return multiply(x, weight, bias)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")
    return product


@torch.library.custom_op("hdm::product", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """For the compiler, which writes oneDNN's call itself, but only for constant weights."""
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
        grad = grad.contiguous()  # oneDNN is slow on a slice of a wider tensor
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.T) if of_x else None,
            _weight_gradient(rows, x.flatten(0, -2)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """gradᵀ x, (outputs, inputs), of (rows, outputs) and (rows, inputs)."""
    outputs = grad.shape[-1]
    inputs = x.shape[-1]
    # On other CPUs MKL is faster: 15.0 ms against 19.1 for 256 → 2048 and 2,560 rows
    # (bench/RESULTS.md).
    if not WEIGHTS_TOO or max(outputs, inputs) < LONG or not len(x):
        return grad.T @ x
    # oneDNN is up to twice as fast where the longer side is the result's row.
    return _product(x.T, grad.T).T if outputs > inputs else _product(grad.T, x.T)
