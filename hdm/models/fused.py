"""The three chains of elementwise arithmetic that, beside matrix products, a step of XUT consists of.

Each is written as its plain formula, which a compiler fuses; and, for the CPU, where no compiler is at hand, as one autograd function
with few passes over memory and a gradient by hand. Both give the same numbers to rounding. In bfloat16 autocast norms and rotation read
and write bfloat16 where the products do, and compute in float32.

Shapes: B batch, S tokens, D width, N heads, K head size, M feed-forward width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, shift: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """x / √(mean x² + eps)·weight + shift over the last axis, in float32; weight and shift are broadcast."""
    if _by_hand(x):
        return _RMSNorm.apply(x, weight, shift, eps)
    normed = F.rms_norm(x.float(), x.shape[-1:], eps=eps)
    return normed * weight if shift is None else torch.addcmul(shift, normed, weight)


def rotate(features: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Turn pair 2j + s of a head's features by the angle positions[s]·exp(table[j, s]), in float32.

    The pair (u, v) = features (2m, 2m+1) becomes (u·cos - v·sin, v·cos + u·sin).

    Args:
        features: (B, S, R, N, K); the R (queries, keys) are turned alike.
        positions: (B or 1, S, 2) as (y, x).
        table: log-frequencies (N, K/4, 2), the axis s = (y, x) last.
    """
    if _by_hand(features):
        return _Rotate.apply(features, positions, table)
    angles = _angles(positions, table)
    cos, sin = angles.cos(), angles.sin()
    u, v = features.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((u * cos - v * sin, v * cos + u * sin), -1).flatten(-2).type_as(features)


def _angles(positions: Tensor, table: Tensor) -> Tensor:
    """(B or 1, S, 1, N, K/2) float32."""
    return (positions[:, :, None, None, None] * table.float().exp()).flatten(-2)


def swiglu_linear(halves: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer of silu(a)·b for the halves a, b of the last axis: (…, 2M) → (…, D), with weight (D, M) and bias (D,)."""
    if _by_hand(halves):
        return _SwiGLULinear.apply(halves, weight, bias)
    a, b = halves.chunk(2, -1)
    return F.linear(F.silu(a) * b, weight, bias)


def _by_hand(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype in (torch.float32, torch.bfloat16) and not torch.compiler.is_compiling()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor | None, eps: float) -> Tensor:
        scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_() / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        ctx.shift_shape = None if shift is None else shift.shape
        normed = x * scale
        return normed.mul_(weight) if shift is None else torch.addcmul(shift, normed, weight, out=normed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        # With r = (mean x² + ε)^-½, n = x·r, w the weight: dn/dx = r·(1 - n nᵀ / D), so the gradient is r·g·w - x·r²·(r·g·x · w) / D.
        x, scale, weight = ctx.saved_tensors
        scaled = grad * scale
        product = scaled * x
        grad_weight = product.sum_to_size(weight.shape)
        along = product.mul_(weight).mean(-1, keepdim=True).mul_(-scale.square())
        grad_x = (x * along).addcmul_(scaled, weight)
        return grad_x.to(x.dtype), grad_weight, None if ctx.shift_shape is None else grad.sum_to_size(ctx.shift_shape), None


class _Rotate(torch.autograd.Function):
    """A pair as a complex number, turned by multiplying with e^(i·angle)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, positions: Tensor, table: Tensor) -> Tensor:
        angles = _angles(positions, table)
        turns = torch.complex(angles.cos(), angles.sin())
        turned = torch.view_as_real(_pairs(features) * turns).flatten(-2).type_as(features)
        ctx.save_for_backward(turned, turns, positions, table)
        return turned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        turned, turns, positions, table = ctx.saved_tensors
        dtype, grad = grad.dtype, _pairs(grad)
        # The derivative to the angle is i·turned: what counts of the gradient is its part along that. Summed as real numbers, since
        # torch's sum of complex ones is several times slower.
        along = torch.view_as_real(torch.conj_physical(_pairs(turned)).mul_(grad))
        grad_angles = along.sum_to_size(*turns.shape, 2)[..., 1].flatten(0, 1).flatten(1)
        by_axis = (positions.flatten(0, 1).T @ grad_angles).view(2, *table.shape)
        grad_table = torch.stack((by_axis[0, ..., 0], by_axis[1, ..., 1]), -1) * table.exp()
        return torch.view_as_real(grad * turns.conj_physical()).flatten(-2).to(dtype), None, grad_table


def _pairs(features: Tensor) -> Tensor:
    """(…, K) of either precision to (…, K/2) complex float32."""
    return torch.view_as_complex(features.float().unflatten(-1, (-1, 2)))


class _SwiGLULinear(torch.autograd.Function):
    """Keeps its input alone: what is made of it again in the backward pass is quicker computed than written to memory and read back."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(halves, weight)
        a, b = halves.chunk(2, -1)
        return F.linear(F.silu(a).mul_(b), weight.type_as(halves), bias.type_as(halves))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        halves, weight = ctx.saved_tensors
        a, b = halves.chunk(2, -1)
        silu = F.silu(a)
        gated = silu * b
        grad_weight = grad.flatten(0, -2).T @ gated.flatten(0, -2)
        grad_gated = grad @ weight.type_as(grad)
        # Both halves' gradients go straight to their places: no copy joins them.
        both = torch.empty_like(halves)
        grad_a, grad_b = both.chunk(2, -1)
        torch.mul(silu, grad_gated, out=grad_b)
        torch.ops.aten.silu_backward.grad_input(torch.mul(grad_gated, b, out=gated), a, grad_input=grad_a)
        return both, grad_weight.type_as(weight), grad.flatten(0, -2).sum(0).type_as(weight)
