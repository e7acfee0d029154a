"""Every submodule of XUT is called: what is put in its place or hooked to it takes effect."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.models.test_xut import TINY, shaken, some_inputs

CONFIGS = {
    "published": TINY,
    "every norm": replace(
        TINY, qk_norm=True, final_norm=True, modulation="per_block", text_mask="masked"
    ),
}
LEAVES = nn.Linear, nn.Conv2d, nn.RMSNorm, nn.LayerNorm
CASES = [
    (name, leaf)
    for name, config in CONFIGS.items()
    for leaf, module in shaken(config).named_modules()
    if isinstance(module, LEAVES)
]


def shifted(x: Tensor, by: float = 0.5) -> Tensor:
    """A constant added to each feature, not the same to all: a LayerNorm that follows would take that away."""
    return x + by * torch.arange(x.shape[-1]).cos()


class Shifted(nn.Module):
    """What an adapter is: the module, called, and something added; it shows none of the module's own attributes."""

    def __init__(self, base: nn.Module, constant: float) -> None:
        super().__init__()
        self.base = base
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return shifted(self.base(x), self.constant)


class ShiftedWeight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        # Along the whole weight, so that rows differ too.
        return shifted(weight.flatten()).view_as(weight)


def output(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return model(**some_inputs(CONFIGS[name]))


@pytest.mark.parametrize(("name", "leaf"), CASES)
def test_a_replaced_module_takes_effect(name: str, leaf: str) -> None:
    model = shaken(CONFIGS[name]).eval()
    plain = output(model, name)
    base = model.get_submodule(leaf)

    model.set_submodule(leaf, Shifted(base, 0.0))
    torch.testing.assert_close(output(model, name), plain, rtol=1e-4, atol=1e-5)

    model.set_submodule(leaf, Shifted(base, 0.5))
    assert (output(model, name) - plain).abs().max() > 1e-4


@pytest.mark.parametrize(("name", "leaf"), CASES)
def test_hooks_a_set_forward_and_parametrizations_take_effect(name: str, leaf: str) -> None:
    model = shaken(CONFIGS[name]).eval()
    plain = output(model, name)
    module = model.get_submodule(leaf)

    hook = module.register_forward_hook(lambda _, given, out: shifted(out))
    assert (output(model, name) - plain).abs().max() > 1e-4
    hook.remove()
    assert torch.equal(output(model, name), plain)

    before = module.register_forward_pre_hook(lambda _, given: (given[0] + 0.5 * given[0].sin(),))
    assert not torch.equal(output(model, name), plain)
    before.remove()

    forward = module.forward
    module.forward = lambda x: shifted(forward(x))
    assert (output(model, name) - plain).abs().max() > 1e-4
    del module.forward

    parametrize.register_parametrization(module, "weight", ShiftedWeight())
    assert (output(model, name) - plain).abs().max() > 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_the_same_through_wrappers(name: str) -> None:
    """In training too: with every leaf wrapped, each parameter's gradient is the plain model's."""
    plain = shaken(CONFIGS[name])
    wrapped = shaken(CONFIGS[name])
    for leaf in [leaf for case, leaf in CASES if case == name]:
        wrapped.set_submodule(leaf, Shifted(wrapped.get_submodule(leaf), 0.0))

    for model in (plain, wrapped):
        model(**some_inputs(CONFIGS[name])).square().sum().backward()

    named = zip(plain.named_parameters(), wrapped.parameters(), strict=True)
    for (parameter, wanted), ours in named:
        assert wanted.grad is not None, parameter
        torch.testing.assert_close(ours.grad, wanted.grad, rtol=1e-3, atol=1e-4)
