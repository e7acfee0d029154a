"""What a step of XUT consists of beside its linear layers: norms, rotation, attention, activations.

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

SHORT = 64
"""Tokens up to which attention's weights are kept for the backward pass: they grow with the square of the tokens."""


def rms_norm(x: Tensor, weight: Tensor, shift: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """x / √(mean x² + eps)·weight + shift over the last axis, in float32; weight and shift are broadcast."""
    if _by_hand(x):
        return _RMSNorm.apply(x, weight, shift, eps, torch.is_grad_enabled())
    normed = F.rms_norm(x.float(), x.shape[-1:], eps=eps)
    return normed * weight if shift is None else torch.addcmul(shift, normed, weight)


def place(
    qkv: Tensor, weight: Tensor | None, positions: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values out of one tensor: the first two normed, then turned to their positions, in float32.

    The norm is `rms_norm` of each head. Then pair 2j + s of a head's features turns by the angle positions[s]·exp(table[j, s]): the pair
    (u, v) = features (2m, 2m+1) becomes (u·cos - v·sin, v·cos + u·sin).

    Args:
        qkv: (B, S, 3, N, K).
        weight: of the norms of queries and keys, (2, K); None: no norm.
        positions: (B or 1, S, 2) as (y, x).
        table: log-frequencies (N, K/4, 2), the axis s = (y, x) last.

    Returns:
        Three of (B, N, S, K).
    """
    if _by_hand(qkv):
        return _Place.apply(qkv, weight, positions, table)
    qk, v = qkv.split((2, 1), 2)
    if weight is not None:
        qk = rms_norm(qk, weight[:, None])
    angles = _angles(positions, table).transpose(1, 2)[:, :, None]
    cos, sin = angles.cos(), angles.sin()
    first, second = qk.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = (
        torch.stack((first * cos - second * sin, second * cos + first * sin), -1)
        .flatten(-2)
        .type_as(qkv)
    )
    q, k = turned.unbind(2)
    return q.transpose(1, 2), k.transpose(1, 2), v.squeeze(2).transpose(1, 2)


def _angles(positions: Tensor, table: Tensor) -> Tensor:
    """(B or 1, N, S, K/2) float32."""
    # Each token's position as often as a head has pairs first: products of rows of two elements would be slow.
    spread = positions[:, :, None].expand(-1, -1, table.shape[1], -1).flatten(2)
    return spread[:, None] * table.float().exp().flatten(1)[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √K) v, of q's shape: three of (B, N, S, K), q perhaps of fewer tokens.

    mask: keys that may be attended to, bool, (B, 1, 1, S); None: all.
    """
    if q.dtype is torch.float32 and _by_hand(q) and k.shape[2] <= SHORT and torch.is_grad_enabled():
        return _ShortAttention.apply(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def swiglu(halves: Tensor) -> Tensor:
    """silu(a)·b for the halves a, b of the last axis: (…, 2M) → (…, M)."""
    by_hand = _by_hand(halves)
    if by_hand and torch.is_grad_enabled():
        return _SwiGLU.apply(halves)
    a, b = halves.chunk(2, -1)
    return F.silu(a).mul_(b) if by_hand else F.silu(a) * b


def _by_hand(tensor: Tensor) -> bool:
    return (
        tensor.is_cpu
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and not torch.compiler.is_compiling()
    )


def _rms_factor(x: Tensor, eps: float = 1e-6) -> Tensor:
    """(mean x² + ε)^-½ over the last axis, which stays with one element."""
    return (
        torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        .square_()
        .div_(x.shape[-1])
        .add_(eps)
        .rsqrt_()
    )


def _rms_gradients(
    grad: Tensor, normed: Tensor, factor: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Of normed·weight, normed = x·factor: those of x and of the weight, from the result's."""
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
        ctx.dtype, x = x.dtype, x.float()
        factor = _rms_factor(x, eps)
        normed = x * factor
        if not keep:  # in place: memory that was just written is quicker than new memory
            return (
                normed.mul_(weight)
                if shift is None
                else torch.addcmul(shift, normed, weight, out=normed)
            )
        ctx.save_for_backward(normed, factor, weight)
        ctx.shift_shape = None if shift is None else shift.shape
        return normed * weight if shift is None else torch.addcmul(shift, normed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        normed, factor, weight = ctx.saved_tensors
        grad_x, grad_weight = _rms_gradients(grad, normed, factor, weight)
        return (
            grad_x.to(ctx.dtype),
            grad_weight,
            None if ctx.shift_shape is None else grad.sum_to_size(ctx.shift_shape),
            None,
            None,
        )


class _Place(torch.autograd.Function):
    """A pair as a complex number, turned by multiplying with e^(i·angle)."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, weight: Tensor | None, positions: Tensor, table: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Each head's tokens together: what follows then runs through memory in long rows.
        heads = qkv.permute(2, 0, 3, 1, 4)
        qk, v = heads[:2].contiguous(), heads[2].contiguous()
        angles = _angles(positions, table)
        turns = torch.complex(angles.cos(), angles.sin())
        if weight is None:
            factor, turned = None, _pairs(qk) * turns
        else:
            factor = _rms_factor(qk.float())
            turned = _pairs((qk * factor).mul_(_spread(weight, qk))).mul_(turns)
        q, k = torch.view_as_real(turned).flatten(-2).type_as(qkv).unbind()
        ctx.save_for_backward(
            q, k, None if weight is None else qk, weight, factor, turns, positions, table
        )
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor
    ) -> tuple[Tensor, Tensor | None, None, Tensor]:
        q, k, qk, weight, factor, turns, positions, table = ctx.saved_tensors
        batch, num_heads, count, size = q.shape
        grad_qkv = grad_v.new_empty(batch, count, 3, num_heads, size)
        places = grad_qkv.permute(2, 0, 3, 1, 4)
        of_q, of_k = _pairs(grad_q), _pairs(grad_k)
        grad, back = q.new_empty((2, *q.shape), dtype=torch.float32), turns.conj_physical()
        torch.mul(of_q, back, out=_pairs(grad[0]))
        torch.mul(of_k, back, out=_pairs(grad[1]))
        # The derivative to the angle is i·turned: what counts of the gradient is its part along that.
        along_turn = (
            torch.conj_physical(_pairs(q)).mul_(of_q).addcmul_(torch.conj_physical(_pairs(k)), of_k)
        )
        grad_table, grad_weight = _of_table(torch.view_as_real(along_turn), positions, table), None
        if weight is not None:
            grad, of_spread = _rms_gradients(grad, qk * factor, factor, _spread(weight, qk))
            grad_weight = of_spread.sum((1, 2, 3))
        places[:2], places[2] = grad, grad_v
        return grad_qkv, grad_weight, None, grad_table


def _spread(weight: Tensor, qk: Tensor) -> Tensor:
    """(2, K) for (2, B, N, S, K), spread over heads and tokens: rows of K elements alone would be slow to multiply with."""
    return weight[:, None, None, None].expand(-1, 1, *qk.shape[2:4], -1).contiguous()


def _of_table(along_turn: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """The table's gradient. along_turn: (B, N, S, K/2, 2), the angles' gradients as the imaginary parts."""
    by_axis = (
        (positions.mT[:, None] @ along_turn.flatten(-2))
        .sum(0)
        .view(len(table), 2, -1, 2, 2)[..., 1]
    )
    return torch.stack((by_axis[:, 0, :, 0], by_axis[:, 1, :, 1]), -1) * table.exp()


class _ShortAttention(torch.autograd.Function):
    """Attention by matrix products, its weights kept: for few tokens quicker than torch's kernel, which works head by head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        queries, keys, values = (x.flatten(0, 1) for x in (q, k, v))
        bias = q.new_zeros(1, 1, 1)
        if mask is not None:
            bias = (
                q.new_zeros(mask.shape)
                .masked_fill_(~mask, -torch.inf)
                .expand(-1, q.shape[1], -1, -1)
                .flatten(0, 1)
            )
        weights = torch.baddbmm(bias, queries, keys.mT, alpha=q.shape[-1] ** -0.5).softmax(-1)
        ctx.save_for_backward(queries, keys, values, weights)
        return (weights @ values).view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, weights = ctx.saved_tensors
        shape, grad = grad.shape[:2], grad.flatten(0, 1)
        of_scores = torch._softmax_backward_data(grad @ values.mT, weights, -1, torch.float32).mul_(
            queries.shape[-1] ** -0.5
        )
        of_all = of_scores @ keys, of_scores.mT @ queries, weights.mT @ grad
        return *(x.unflatten(0, shape) for x in of_all), None


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
