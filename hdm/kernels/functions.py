"""What XUT's steps consist of besides linear layers, for the CPU: norms, rotation, attention,
SwiGLU.

Each is one autograd function with few passes over memory and a gradient written by hand. Results
agree with the formulas in `hdm.models` to rounding. In bfloat16 autocast, norms and rotation read
and write bfloat16 where the products do, and compute in float32.

Shapes: B batch, S tokens, D width, N heads, K head size, M feed-forward width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORT = 64
"""Up to this many tokens attention keeps its weights, which grow with the square of the tokens."""


def suits(tensor: Tensor) -> bool:
    """Whether these functions compute with such a tensor. A compiler fuses the formulas itself."""
    return (
        tensor.is_cpu
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and not torch.compiler.is_compiling()
    )


def rms_norm(x: Tensor, weight: Tensor, shift: Tensor | None = None, *, eps: float) -> Tensor:
    """x / √(mean x² + eps)·weight + shift over the last axis, in float32; both broadcast."""
    # Within `forward`, gradients always count as disabled, so their state is passed on.
    normed: Tensor = _RMSNorm.apply(x, weight, shift, eps, torch.is_grad_enabled())
    return normed


def norm_and_rotate(
    qkv: Tensor, weight: Tensor | None, positions: Tensor, table: Tensor, *, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values apart, the first two normed and rotated in float32.

    The norm is `rms_norm` of each head, the rotation that of `hdm.models.rope`.

    Args:
        qkv: (B, S, 3, N, K).
        weight: of the norms of queries and keys, (2, K); None: no norm.
        positions: (B or 1, S, 2) as (y, x).
        table: log-frequencies (N, K/4, 2), the axis (y, x) last.
        eps: of the norms.

    Returns:
        Three of (B, N, S, K).
    """
    rotated: tuple[Tensor, Tensor, Tensor] = _NormAndRotate.apply(
        qkv, weight, positions, table, eps
    )
    return rotated


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √K) v, of q's shape: three of (B, N, S, K); q may have fewer tokens.

    mask: keys that may be attended to, bool, (B, 1, 1, S); None: all.
    """
    # For 1,024 tokens in samples of 16, forward and back take 269 µs instead of 401
    # (bench/RESULTS.md).
    if q.dtype is torch.float32 and k.shape[2] <= SHORT and torch.is_grad_enabled():
        mixed: Tensor = _ShortAttention.apply(q, k, v, mask)
        return mixed
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def swiglu(halves: Tensor) -> Tensor:
    """silu(a)·b of the halves a, b of the last axis: (…, 2M) → (…, M)."""
    if torch.is_grad_enabled():
        product: Tensor = _SwiGLU.apply(halves)
        return product
    a, b = halves.chunk(2, -1)
    return F.silu(a).mul_(b)


def _angles(positions: Tensor, table: Tensor) -> Tensor:
    """(B or 1, N, S, K/2) float32."""
    # Repeat each token's position for every pair of a head first: rows of two elements are slow.
    spread = positions[:, :, None].expand(-1, -1, table.shape[1], -1).flatten(2)
    return spread[:, None] * table.float().exp().flatten(1)[:, None]


def _rms_factor(x: Tensor, eps: float) -> Tensor:
    """(mean x² + eps)^-½ over the last axis, which is kept with one element."""
    # vector_norm reads x once and writes no array of squares.
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _rms_gradients(
    grad: Tensor, normed: Tensor, factor: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight in normed·weight, normed = x·factor, from the result's."""
    # With n = x·r, r = (mean x² + ε)^-½: dn/dx = r·(1 - n nᵀ / D).
    product = grad * normed
    grad_weight = product.sum_to_size(weight.shape)
    along = product.mul_(weight).mean(-1, keepdim=True)
    return (grad * weight).addcmul_(normed, along, value=-1).mul_(factor), grad_weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, shift: Tensor | None, eps: float, keep: bool
    ) -> Tensor:
        ctx.dtype = x.dtype
        x = x.float()
        factor = _rms_factor(x, eps)
        normed = x * factor
        if not keep:  # in place: memory just written is faster than new memory
            if shift is None:
                return normed.mul_(weight)
            return torch.addcmul(shift, normed, weight, out=normed)
        ctx.save_for_backward(normed, factor, weight)
        ctx.shift_shape = None if shift is None else shift.shape
        if shift is None:
            return normed * weight
        return torch.addcmul(shift, normed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        normed, factor, weight = ctx.saved_tensors
        grad_x, grad_weight = _rms_gradients(grad, normed, factor, weight)
        grad_shift = None if ctx.shift_shape is None else grad.sum_to_size(ctx.shift_shape)
        return grad_x.to(ctx.dtype), grad_weight, grad_shift, None, None


class _NormAndRotate(torch.autograd.Function):
    """A pair as a complex number, rotated by multiplying with e^(i·angle)."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        weight: Tensor | None,
        positions: Tensor,
        table: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Each head's tokens together, so that what follows runs through memory in long rows.
        heads = qkv.permute(2, 0, 3, 1, 4)
        qk = heads[:2].contiguous()
        v = heads[2].contiguous()
        angles = _angles(positions, table)
        turns = torch.complex(angles.cos(), angles.sin())
        factor = None
        if weight is None:
            turned = _pairs(qk) * turns
        else:
            factor = _rms_factor(qk.float(), eps)
            turned = _pairs((qk * factor).mul_(_spread(weight, qk))).mul_(turns)
        q, k = torch.view_as_real(turned).flatten(-2).type_as(qkv).unbind()
        # Without a norm, the backward pass needs only q and k after their rotation.
        before = None if weight is None else qk
        ctx.save_for_backward(q, k, before, weight, factor, turns, positions, table)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor
    ) -> tuple[Tensor, Tensor | None, None, Tensor, None]:
        q, k, qk, weight, factor, turns, positions, table = ctx.saved_tensors
        batch, num_heads, count, size = q.shape
        # The gradients are written in the layout of the linear layer's output, so that no copy
        # joins them.
        grad_qkv = grad_v.new_empty(batch, count, 3, num_heads, size)
        places = grad_qkv.permute(2, 0, 3, 1, 4)
        of_q = _pairs(grad_q)
        of_k = _pairs(grad_k)
        # The conjugate is the inverse rotation. It is computed here, since the lazy `conj` would be
        # resolved in each of the two products.
        back = turns.conj_physical()
        grad = q.new_empty((2, *q.shape), dtype=torch.float32)
        torch.mul(of_q, back, out=_pairs(grad[0]))
        torch.mul(of_k, back, out=_pairs(grad[1]))
        # The derivative with respect to the angle is i·rotated: the gradient's part along that.
        along_turn = torch.conj_physical(_pairs(q)).mul_(of_q)
        along_turn.addcmul_(torch.conj_physical(_pairs(k)), of_k)
        grad_table = _of_table(torch.view_as_real(along_turn), positions, table)
        grad_weight = None
        if weight is not None:
            grad, of_spread = _rms_gradients(grad, qk * factor, factor, _spread(weight, qk))
            grad_weight = of_spread.sum((1, 2, 3))
        places[:2] = grad
        places[2] = grad_v
        return grad_qkv, grad_weight, None, grad_table, None


def _spread(weight: Tensor, qk: Tensor) -> Tensor:
    """(2, K) for (2, B, N, S, K), spread over heads and tokens: rows of K elements are slow."""
    return weight[:, None, None, None].expand(-1, 1, *qk.shape[2:4], -1).contiguous()


def _of_table(along_turn: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """The table's gradient.

    along_turn: (B, N, S, K/2, 2), whose imaginary parts are the angles' gradients.
    """
    # A matrix product sums over the tokens.
    by_axis = (positions.mT[:, None] @ along_turn.flatten(-2)).sum(0)
    by_axis = by_axis.view(len(table), 2, -1, 2, 2)[..., 1]
    return torch.stack((by_axis[:, 0, :, 0], by_axis[:, 1, :, 1]), -1) * table.exp()


class _ShortAttention(torch.autograd.Function):
    """Attention by matrix products, its weights kept.

    For few tokens faster than torch's kernel, which works head by head.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        queries = q.flatten(0, 1)
        keys = k.flatten(0, 1)
        values = v.flatten(0, 1)
        # baddbmm always adds a bias; without a mask, a single zero is broadcast.
        bias = q.new_zeros(1, 1, 1)
        if mask is not None:
            bias = q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
            bias = bias.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
        weights = torch.baddbmm(bias, queries, keys.mT, alpha=q.shape[-1] ** -0.5).softmax(-1)
        ctx.save_for_backward(queries, keys, values, weights)
        return (weights @ values).view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, weights = ctx.saved_tensors
        heads = grad.shape[:2]
        grad = grad.flatten(0, 1)
        # This undocumented operator, which torch's own softmax calls, reads the weights once.
        scores = torch._softmax_backward_data(grad @ values.mT, weights, -1, torch.float32)
        scores.mul_(queries.shape[-1] ** -0.5)
        grad_q = (scores @ keys).unflatten(0, heads)
        grad_k = (scores.mT @ queries).unflatten(0, heads)
        grad_v = (weights.mT @ grad).unflatten(0, heads)
        return grad_q, grad_k, grad_v, None


def _pairs(features: Tensor) -> Tensor:
    """(…, K) of either precision to (…, K/2) complex float32."""
    return torch.view_as_complex(features.float().unflatten(-1, (-1, 2)))


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, halves: Tensor) -> Tensor:
        a, b = halves.chunk(2, -1)
        # The activation is kept: computing it again in the backward pass made steps 2 % slower
        # (bench/RESULTS.md).
        silu = F.silu(a)
        ctx.save_for_backward(halves, silu)
        return silu * b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        halves, silu = ctx.saved_tensors
        a, b = halves.chunk(2, -1)
        # Both halves' gradients are written where they belong, so no copy joins them.
        both = torch.empty_like(halves)
        grad_a, grad_b = both.chunk(2, -1)
        torch.mul(silu, grad, out=grad_b)
        torch.ops.aten.silu_backward.grad_input(grad * b, a, grad_input=grad_a)
        return both
