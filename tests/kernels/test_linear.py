"""The blocks' linear layer against torch's own in float64."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hdm.kernels.linear import ONEDNN, gated, linear, mkl_takes_half_vectors
from hdm.kernels.modules import Linear


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CASES = {
    "long sequences": ((4, 320, 64), (192, 64), True),
    "no bias": ((2, 40, 48), (32, 48), False),
    "one token": ((1, 1, 16), (8, 16), True),
    "no sequence": ((5, 16), (24, 16), True),
    "nothing": ((2, 0, 16), (24, 16), True),
    "many outputs": ((4, 80, 64), (320, 64), True),
    "many inputs": ((4, 80, 320), (64, 320), True),
    "nothing, many outputs": ((2, 0, 16), (320, 16), True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", ["contiguous", "every other token"])
@pytest.mark.parametrize("weights_too", [False, True], ids=["outputs and inputs", "weights too"])
def test_output_and_gradients_are_those_of_float64(name, order, weights_too, monkeypatch):
    if weights_too and not ONEDNN:
        pytest.skip("this torch has no oneDNN product")
    monkeypatch.setattr("hdm.kernels.linear.WEIGHTS_TOO", weights_too)
    x_shape, weight_shape, has_bias = CASES[name]
    given = [rand(*x_shape), rand(*weight_shape), *([rand(weight_shape[0])] if has_bias else [])]
    step = 1 if order == "contiguous" else 2

    def run(function, dtype):
        x, weight, *bias = (value.to(dtype).clone().requires_grad_() for value in given)
        out = function(x[..., ::step, :], weight, *bias or [None])
        (out * torch.arange(out.numel(), dtype=dtype).view(out.shape).cos()).sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(function(x[..., ::step, :], weight, *bias or [None]), out)
        return out, [value.grad for value in (x, weight, *bias)]

    (ours, gradients), (exact, wanted) = run(linear, torch.float32), run(F.linear, torch.float64)
    torch.testing.assert_close(ours, exact, check_dtype=False, rtol=1e-5, atol=1e-4)
    for mine, true in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, true, check_dtype=False, rtol=1e-5, atol=1e-4)


def test_only_what_is_learned_has_a_gradient():
    layer, x = Linear(16, 8), rand(3, 5, 16).requires_grad_()
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((8,), 15.0))
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 5, 16))


def test_autocast_rules_as_with_torch_s_layer():
    layer, x = Linear(16, 8), rand(3, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer(x).dtype == torch.bfloat16


def test_compiled_it_is_the_same(monkeypatch):
    monkeypatch.setattr("hdm.kernels.linear.WEIGHTS_TOO", ONEDNN)
    layer, x = Linear(32, 320), rand(3, 5, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def run(function):
        given = x.clone().requires_grad_()
        out = function(given)
        return out, *torch.autograd.grad(out.cos().sum(), (given, layer.weight, layer.bias))

    for ours, plain in zip(run(compiled), run(layer), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.skipif(not ONEDNN, reason="this torch has no oneDNN product")
def test_the_gated_product_is_its_formula_in_float64():
    x, weight, bias = 3 * rand(4, 33, 48), rand(2 * 40, 48), rand(2 * 40)
    a, b = F.linear(x.double(), weight.double(), bias.double()).chunk(2, -1)
    wanted = a / (1 + torch.exp(-a)) * b
    with torch.no_grad():
        ours = gated(x, weight, bias)
    torch.testing.assert_close(ours, wanted, check_dtype=False, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n"
            "flags\t\t: fpu avx2 avx512f avx512dq\n\nprocessor\t: 1\n",
            True,
        ),
        (
            "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: avx512f\n",
            False,
        ),  # Zen 4: its own units are 256 bits wide
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t\t: avx2\n", False),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nflags\t\t: avx512f\n", False),
        ("CPU implementer\t: 0x41\n", False),
        ("", False),
    ],
)
def test_cpus_of_which_mkl_uses_half(
    text: str, half: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hdm.kernels.linear.CPU_INFO", tmp_path / "cpuinfo")
    assert not mkl_takes_half_vectors()
    (tmp_path / "cpuinfo").write_text(text)
    assert mkl_takes_half_vectors() is half
