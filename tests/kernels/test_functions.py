"""The functions with gradients by hand, in float32 and bfloat16, against plain formulas in
float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hdm.kernels.functions import SHORT, attend, norm_and_rotate, rms_norm, swiglu
from tests.models import oracle

B, S, N, K = 3, 5, 2, 8
EPS = 1e-6
Function = Callable[..., Any]
VALID = torch.arange(S) < torch.tensor([S, 3, 1]).view(B, 1, 1, 1)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def plain_norm(x: Tensor, weight: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight + shift


def plain_rotation(qkv: Tensor, table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.transpose(1, 3).unbind(2)
    return oracle.rotated(q, table, positions), oracle.rotated(k, table, positions), v


def plain_norm_and_rotation(
    qkv: Tensor, weight: Tensor, table: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    factors = torch.cat((weight, torch.ones_like(weight[:1])))[:, None]
    normed = torch.cat((plain_norm(qkv, factors)[:, :, :2], qkv[:, :, 2:]), 2)
    return plain_rotation(normed, table, positions)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores: Tensor = q @ k.mT / K**0.5
    return scores.masked_fill(~VALID, -torch.inf).softmax(-1) @ v


# Ours, the formula, inputs that are learned, inputs that are data.
Case = tuple[Function, Function, list[Tensor], list[Tensor]]
CASES: dict[str, Case] = {
    "norm": (
        lambda x, weight: rms_norm(x, weight, eps=EPS),
        plain_norm,
        [rand(B, S, K), rand(K)],
        [],
    ),
    "modulated norm": (
        lambda x, weight, shift: rms_norm(x, weight, shift, eps=EPS),
        plain_norm,
        [rand(B, S, K), rand(B, 1, K), rand(B, 1, K)],
        [],
    ),
    "positions, each sample's": (
        lambda qkv, weight, table, at: norm_and_rotate(qkv, weight, at, table, eps=EPS),
        plain_norm_and_rotation,
        [rand(B, S, 3, N, K), rand(2, K), rand(N, K // 4, 2)],
        [rand(B, S, 2)],
    ),
    "positions alike": (
        lambda qkv, weight, table, at: norm_and_rotate(qkv, weight, at, table, eps=EPS),
        plain_norm_and_rotation,
        [rand(B, S, 3, N, K), rand(2, K), rand(N, K // 4, 2)],
        [rand(1, S, 2)],
    ),
    "positions, no norm": (
        lambda qkv, table, at: norm_and_rotate(qkv, None, at, table, eps=EPS),
        plain_rotation,
        [rand(B, S, 3, N, K), rand(N, K // 4, 2)],
        [rand(B, S, 2)],
    ),
    "swiglu": (
        swiglu,
        lambda halves: F.silu(halves[..., :K]) * halves[..., K:],
        [rand(B, S, 2 * K)],
        [],
    ),
}
ATTENTION: dict[str, Case] = {
    "some keys": (
        lambda q, k, v: attend(q, k, v, VALID),
        plain_attention,
        [2 * rand(B, N, S, K), rand(B, N, S, K), rand(S, N, B, K).transpose(0, 2)],
        [],
    ),
    "first queries": (
        lambda q, k, v: attend(q[:, :, :2], k, v, None),
        lambda q, k, v: (q[:, :, :2] @ k.mT / K**0.5).softmax(-1) @ v,
        [2 * rand(B, N, S, K), rand(B, N, S, K), rand(S, N, B, K).transpose(0, 2)],
        [],
    ),
}


def run(function: Function, given: list[Tensor], data: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A function's outputs, one after another, and its gradients."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    out = function(*leaves, *data)
    parts = out if isinstance(out, tuple) else (out,)
    total = torch.zeros(())
    for number, part in enumerate(parts):
        total = total + (part * torch.arange(part.numel()).view(part.shape).add(number).cos()).sum()
    total.backward()
    gradients = [tensor.grad for tensor in leaves if tensor.grad is not None]
    assert len(gradients) == len(leaves)
    return torch.cat([part.flatten() for part in parts]), gradients


def in_float64(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


@pytest.mark.parametrize("name", [*CASES, *ATTENTION])
def test_values_and_gradients_by_hand_are_the_formula_s(name: str) -> None:
    function, formula, learned, data = (CASES | ATTENTION)[name]
    ours, gradients = run(function, learned, data)
    exact, wanted = run(formula, in_float64(learned), in_float64(data))
    torch.testing.assert_close(ours, exact, check_dtype=False, rtol=1e-5, atol=1e-5)
    for mine, true in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, true, check_dtype=False, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        without = function(*learned, *data)
    parts = without if isinstance(without, tuple) else (without,)
    flat = torch.cat([part.flatten() for part in parts])
    torch.testing.assert_close(flat, exact, check_dtype=False, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_in_bfloat16_only_reading_and_writing_are_rounded(name: str) -> None:
    """Values to bfloat16's 2⁻⁸ of their size; gradients, sums of such, of the largest one's."""
    function, formula, (first, *others), data = CASES[name]
    rounded = [first.bfloat16(), *others]
    ours, gradients = run(function, rounded, data)
    exact, wanted = run(formula, in_float64(rounded), in_float64(data))
    is_norm = "norm" in name and "positions" not in name
    assert ours.dtype == (torch.float32 if is_norm else torch.bfloat16)
    rtol = 1e-5 if is_norm else 2**-7
    torch.testing.assert_close(ours, exact, check_dtype=False, rtol=rtol, atol=1e-5)
    for mine, true in zip(gradients, wanted, strict=True):
        assert (mine - true).abs().max() < 2**-6 * true.abs().max()


def test_long_attention_does_not_keep_its_weights() -> None:
    """They would be the largest thing that a step keeps."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    q = rand(1, 2, 2 * SHORT, 8).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(q, q, q, None)
    assert kept
    assert max(kept) < (2 * SHORT) ** 2
