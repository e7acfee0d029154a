"""The functions with gradients by hand (float32, bfloat16) against their plain formulas (which float64 takes)."""

from dataclasses import replace

import pytest
import torch

from hdm.architecture import XUTConfig
from hdm.models.fused import rms_norm, rotate, swiglu
from hdm.models.xut import XUT

B, S, N, K = 3, 5, 2, 8


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CASES = {
    "norm": (rms_norm, [rand(B, S, K), rand(K)]),
    "modulated norm": (rms_norm, [rand(B, S, K), rand(B, 1, K), rand(B, 1, K)]),
    "norm of heads": (rms_norm, [rand(B, S, 2, N, K), rand(2, N, K)]),
    "rotation, each sample's positions": (rotate, [rand(B, S, 2, N, K), rand(B, S, 2), rand(N, K // 4, 2)]),
    "rotation, positions alike": (rotate, [rand(B, S, 1, N, K), rand(1, S, 2), rand(N, K // 4, 2)]),
    "swiglu": (swiglu, [rand(B, S, 2 * K)]),
}


def runner(function, inputs, learned):
    """What gives a function's output and gradients in a precision, its first input in another."""

    def run(dtype, first=None):
        given = [tensor.to(dtype if i else first or dtype).clone().requires_grad_(i in learned) for i, tensor in enumerate(inputs)]
        out = function(*given)
        (out * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
        return out, [given[i].grad for i in learned]

    return run


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_by_hand_are_the_formula_s(name):
    function, inputs = CASES[name]
    learned = [i for i in range(len(inputs)) if not (function is rotate and i == 1)]  # positions are data

    run = runner(function, inputs, learned)

    (ours, gradients), (plain, wanted) = run(torch.float32), run(torch.float64)
    assert type(ours.grad_fn) is not type(plain.grad_fn)
    torch.testing.assert_close(ours, plain, check_dtype=False, rtol=1e-5, atol=1e-5)
    for mine, exact in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, exact, check_dtype=False, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_in_bfloat16_only_reading_and_writing_are_rounded(name):
    """Values to bfloat16's 2⁻⁸ of their own size; gradients, which are sums of such, of the largest one's."""
    function, inputs = CASES[name]
    learned = [i for i in range(len(inputs)) if not (function is rotate and i == 1)]
    rounded = [inputs[0].bfloat16(), *inputs[1:]]
    run = runner(function, rounded, learned)
    (ours, gradients), (plain, wanted) = run(torch.float32, first=torch.bfloat16), run(torch.float64)
    assert type(ours.grad_fn) is not type(plain.grad_fn)
    assert ours.dtype == (torch.float32 if function is rms_norm else torch.bfloat16)
    torch.testing.assert_close(ours, plain, check_dtype=False, rtol=1e-5 if function is rms_norm else 2**-7, atol=1e-5)
    for mine, exact in zip(gradients, wanted, strict=True):
        assert (mine - exact).abs().max() < 2**-6 * exact.abs().max()


def test_the_model_is_one_graph_for_a_compiler():
    config = XUTConfig(width=32, num_heads=2, head_size=16, mlp_width=24, text_width=6, depth=1, dec_blocks=1, prev_blocks=0, post_blocks=1)
    torch.manual_seed(0)
    model = XUT(replace(config.recommended(), channels=3))
    latent, text, kept = rand(2, 3, 4, 6), rand(2, 3, 6), torch.tensor([[0, 2, 5], [1, 3, 4]])
    given = dict(text_mask=torch.ones(2, 3, dtype=torch.bool), kept=kept, positions=rand(2, 6, 2), log_aspect=rand(2))
    whole = torch.compile(model, fullgraph=True, backend="eager")
    t = torch.tensor([0.2, 0.9])
    torch.testing.assert_close(whole(latent, t, text, **given), model(latent, t, text, **given), rtol=1e-4, atol=1e-6)
