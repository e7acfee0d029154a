"""The functions with gradients by hand (float32, bfloat16) against their plain formulas (which float64 takes)."""

from dataclasses import replace

import pytest
import torch

from hdm.architecture import XUTConfig
from hdm.models.fused import SHORT, attend, place, rms_norm, swiglu
from hdm.models.xut import XUT

B, S, N, K = 3, 5, 2, 8


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def unnormed(qkv, table, positions):
    return place(qkv, None, positions, table)


def normed(qkv, weight, table, positions):
    return place(qkv, weight, positions, table)


def masked(q, k, v):
    return attend(q, k, v, torch.arange(k.shape[2]) < torch.tensor([S, 3, 1]).view(B, 1, 1, 1))


def unmasked(q, k, v):
    return attend(q[:, :, :2], k, v, None)


# Each with inputs that are learned, then those that are data.
CASES = {
    "norm": (rms_norm, [rand(B, S, K), rand(K)], []),
    "modulated norm": (rms_norm, [rand(B, S, K), rand(B, 1, K), rand(B, 1, K)], []),
    "norm of heads": (rms_norm, [rand(B, S, 2, N, K), rand(2, N, K)], []),
    "places, each sample's": (
        normed,
        [rand(B, S, 3, N, K), rand(2, K), rand(N, K // 4, 2)],
        [rand(B, S, 2)],
    ),
    "places alike": (
        normed,
        [rand(B, S, 3, N, K), rand(2, K), rand(N, K // 4, 2)],
        [rand(1, S, 2)],
    ),
    "places, no norm": (unnormed, [rand(B, S, 3, N, K), rand(N, K // 4, 2)], [rand(B, S, 2)]),
    "swiglu": (swiglu, [rand(B, S, 2 * K)], []),
}
ATTENTION = {
    "some keys": (
        masked,
        [2 * rand(B, N, S, K), rand(B, N, S, K), rand(S, N, B, K).transpose(0, 2)],
        [],
    ),
    "first queries": (
        unmasked,
        [2 * rand(B, N, S, K), rand(B, N, S, K), rand(S, N, B, K).transpose(0, 2)],
        [],
    ),
}


def run(case, dtype, first=None):
    """A case's outputs, one after another, and gradients, in a precision, its first input in another."""
    function, learned, data = case
    given = [
        tensor.to(dtype if i else first or dtype).clone().requires_grad_()
        for i, tensor in enumerate(learned)
    ]
    out = function(*given, *(tensor.to(dtype) for tensor in data))
    parts = out if isinstance(out, tuple) else (out,)
    sum(
        (part * torch.arange(part.numel()).view(part.shape).add(i).cos()).sum()
        for i, part in enumerate(parts)
    ).backward()
    return (
        torch.cat([part.flatten() for part in parts]),
        [tensor.grad for tensor in given],
        type(parts[0].grad_fn),
    )


@pytest.mark.parametrize("name", [*CASES, *ATTENTION])
def test_values_and_gradients_by_hand_are_the_formula_s(name):
    case = (CASES | ATTENTION)[name]
    (ours, gradients, by_hand), (plain, wanted, formula) = (
        run(case, torch.float32),
        run(case, torch.float64),
    )
    assert by_hand is not formula
    torch.testing.assert_close(ours, plain, check_dtype=False, rtol=1e-5, atol=1e-5)
    for mine, exact in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, exact, check_dtype=False, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_in_bfloat16_only_reading_and_writing_are_rounded(name):
    """Values to bfloat16's 2⁻⁸ of their own size; gradients, which are sums of such, of the largest one's."""
    function, (first, *others), data = CASES[name]
    case = function, [first.bfloat16(), *others], data
    (ours, gradients, by_hand), (plain, wanted, formula) = (
        run(case, torch.float32, first=torch.bfloat16),
        run(case, torch.float64),
    )
    assert by_hand is not formula
    assert ours.dtype == (torch.float32 if function is rms_norm else torch.bfloat16)
    torch.testing.assert_close(
        ours, plain, check_dtype=False, rtol=1e-5 if function is rms_norm else 2**-7, atol=1e-5
    )
    for mine, exact in zip(gradients, wanted, strict=True):
        assert (mine - exact).abs().max() < 2**-6 * exact.abs().max()


def test_long_attention_does_not_keep_its_weights():
    """They would be the largest thing that a step keeps."""
    kept = []
    q = rand(1, 2, 2 * SHORT, 8).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()), lambda _: None
    ):
        attend(q, q, q, None)
    assert kept
    assert max(kept) < (2 * SHORT) ** 2


def test_the_model_is_one_graph_for_a_compiler():
    config = XUTConfig(
        width=32,
        num_heads=2,
        head_size=16,
        mlp_width=24,
        text_width=6,
        depth=1,
        dec_blocks=1,
        prev_blocks=0,
        post_blocks=1,
    )
    torch.manual_seed(0)
    model = XUT(replace(config.recommended(), channels=3))
    latent, text, kept = rand(2, 3, 4, 6), rand(2, 3, 6), torch.tensor([[0, 2, 5], [1, 3, 4]])
    given = dict(
        text_mask=torch.ones(2, 3, dtype=torch.bool),
        kept=kept,
        positions=rand(2, 6, 2),
        log_aspect=rand(2),
    )
    whole = torch.compile(model, fullgraph=True, backend="eager")
    t = torch.tensor([0.2, 0.9])
    torch.testing.assert_close(
        whole(latent, t, text, **given), model(latent, t, text, **given), rtol=1e-4, atol=1e-6
    )
