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
        return _RMSNorm.apply(x, weight, shift, eps, torch.is_grad_enabled())
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


def swiglu(halves: Tensor) -> Tensor:
    """silu(a)·b for the halves a, b of the last axis: (…, 2M) → (…, M)."""
    by_hand = _by_hand(halves)
    if by_hand and torch.is_grad_enabled():
        return _SwiGLU.apply(halves)
    a, b = halves.chunk(2, -1)
    return F.silu(a).mul_(b) if by_hand else F.silu(a) * b


def _by_hand(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype in (torch.float32, torch.bfloat16) and not torch.compiler.is_compiling()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor | None, eps: float, keep: bool) -> Tensor:
        ctx.dtype, x = x.dtype, x.float()
        scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        if not keep:  # in place: memory that was just written is quicker than new memory
            return normed.mul_(weight) if shift is None else torch.addcmul(shift, normed, weight, out=normed)
        ctx.save_for_backward(normed, scale, weight)
        ctx.shift_shape = None if shift is None else shift.shape
        return normed * weight if shift is None else torch.addcmul(shift, normed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        # With n = x·r, r = (mean x² + ε)^-½: dn/dx = r·(1 - n nᵀ / D).
        normed, scale, weight = ctx.saved_tensors
        product = grad * normed
        grad_weight = product.sum_to_size(weight.shape)
        along = product.mul_(weight).mean(-1, keepdim=True)
        grad_x = (grad * weight).addcmul_(normed, along, value=-1).mul_(scale)
        return grad_x.to(ctx.dtype), grad_weight, None if ctx.shift_shape is None else grad.sum_to_size(ctx.shift_shape), None, None


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


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, halves: Tensor) -> Tensor:
        a, b = halves.chunk(2, -1)
        silu = F.silu(a)
        ctx.save_for_backward(halves, silu)
        return silu * b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        halves, silu = ctx.saved_tensors
        a, b = halves.chunk(2, -1)
        # Both halves' gradients go straight to their places: no copy joins them.
        both = torch.empty_like(halves)
        grad_a, grad_b = both.chunk(2, -1)
        torch.mul(silu, grad, out=grad_b)
        torch.ops.aten.silu_backward.grad_input(grad * b, a, grad_input=grad_a)
        return both
