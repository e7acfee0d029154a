"""Every submodule of XUT is called, with and without kernels: what replaces it takes effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hdm.architecture import XUTConfig
from hdm.kernels import install
from hdm.models.rope import RotaryPositions
from hdm.models.xut import XUT
from tests.models.test_xut import TINY, some_inputs
from tests.small_models import shaken

# A block of each kind: encoder, decoder with a skip, last.
PUBLISHED = replace(TINY, depth=1, dec_blocks=1, prev_blocks=0)
CONFIGS = {
    "published": PUBLISHED,
    "every norm": replace(
        PUBLISHED, qk_norm=True, final_norm=True, modulation="per_block", text_mask="masked"
    ),
}
LEAVES = nn.Linear, nn.Conv2d, nn.RMSNorm, nn.LayerNorm, RotaryPositions
CASES = [
    (name, leaf)
    for name, config in CONFIGS.items()
    for leaf, module in shaken(config).named_modules()
    if isinstance(module, LEAVES)
]
EACH = pytest.mark.parametrize(("name", "leaf"), CASES)
WITH = pytest.mark.parametrize("kernels", ["none", "installed before", "installed after"])


def shifted(x: Tensor, by: float = 0.5) -> Tensor:
    """A constant added to each feature, not the same to all, which a LayerNorm would take away."""
    return x + by * torch.arange(x.shape[-1]).cos()


class Shifted(nn.Module):
    """What an adapter is: it calls the module and adds something; it has none of its attributes."""

    def __init__(self, base: nn.Module, constant: float) -> None:
        super().__init__()
        self.base = base
        self.constant = constant

    def forward(self, *given: Tensor) -> Tensor:
        return shifted(self.base(*given), self.constant)


class ShiftedWeight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        # Along the whole weight, so that rows differ too.
        return shifted(weight.flatten()).view_as(weight)


def replace_module(model: XUT, leaf: str) -> None:
    model.set_submodule(leaf, Shifted(model.get_submodule(leaf), 0.5))


def hook_after(model: XUT, leaf: str) -> None:
    model.get_submodule(leaf).register_forward_hook(lambda _, given, out: shifted(out))


def hook_before(model: XUT, leaf: str) -> None:
    model.get_submodule(leaf).register_forward_pre_hook(
        lambda _, given: (given[0] + 0.5 * given[0].sin(), *given[1:])
    )


def set_forward(model: XUT, leaf: str) -> None:
    module = model.get_submodule(leaf)
    forward = module.forward
    module.forward = lambda *given: shifted(forward(*given))


def parametrize_weight(model: XUT, leaf: str) -> None:
    module = model.get_submodule(leaf)
    weight = "freqs" if isinstance(module, RotaryPositions) else "weight"
    parametrize.register_parametrization(module, weight, ShiftedWeight())


CHANGES = [replace_module, hook_after, hook_before, set_forward, parametrize_weight]


def outputs(model: XUT) -> list[Tensor]:
    """What the model computes in sampling and in training, which have kernels of their own."""
    given = some_inputs(model.config, batch=2)
    with torch.no_grad():
        sampled = model(**given)
    return [sampled, model(**given).detach()]


@cache
def unchanged(name: str) -> tuple[XUT, list[Tensor]]:
    """A model that no test changes, and what it computes."""
    model = shaken(CONFIGS[name])
    return model, outputs(model)


def assert_near(ours: list[Tensor], wanted: list[Tensor]) -> None:
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@EACH
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_effect_with_and_without_kernels(
    change: Callable[[XUT, str], None], name: str, leaf: str
) -> None:
    """The same effect without kernels, with kernels before, and with kernels after it."""
    model, plain = unchanged(name)
    without, before = deepcopy(model), deepcopy(model)
    change(without, leaf)
    changed = outputs(without)
    for mine, wanted in zip(changed, plain, strict=True):
        assert (mine - wanted).abs().max() > 1e-4

    assert install(before).swapped > 0
    change(before, leaf)
    assert_near(outputs(before), changed)

    install(without)
    assert_near(outputs(without), changed)


@contextmanager
def installed(model: XUT, kernels: str) -> Iterator[None]:
    """Kernels before what is done here, after it, or not at all."""
    if kernels == "installed before":
        install(model)
    yield
    if kernels == "installed after":
        install(model)


def leaves_of(name: str) -> list[str]:
    return [leaf for case, leaf in CASES if case == name]


@WITH
@pytest.mark.parametrize("name", CONFIGS)
def test_a_change_that_is_undone_leaves_nothing(name: str, kernels: str) -> None:
    model = shaken(CONFIGS[name])
    hooks = []
    with installed(model, kernels):
        plain = outputs(model)
        for leaf in leaves_of(name):
            module = model.get_submodule(leaf)
            hooks.append(module.register_forward_hook(lambda _, given, out: shifted(out)))
            model.set_submodule(leaf, Shifted(module, 0.0))
    for hook in hooks:
        hook.remove()
    assert_near(outputs(model), plain)


@WITH
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_the_same_through_wrappers(name: str, kernels: str) -> None:
    """With every leaf wrapped, each parameter's gradient is the plain model's."""
    wrapped = shaken(CONFIGS[name])
    with installed(wrapped, kernels):
        for leaf in leaves_of(name):
            wrapped.set_submodule(leaf, Shifted(wrapped.get_submodule(leaf), 0.0))
    assert_same_gradients(wrapped, CONFIGS[name])


# The latent, the first layer's input, is data.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_backward_hook_runs_on_a_module_with_kernels(name: str) -> None:
    """On every leaf, though without the hook a kernel would have computed past it."""
    model = shaken(CONFIGS[name])
    install(model)
    seen: set[str] = set()
    leaves = leaves_of(name)
    for leaf in leaves:

        def hook(module: torch.nn.Module, given: Any, out: Any, leaf: str = leaf) -> None:
            seen.add(leaf)

        model.get_submodule(leaf).register_full_backward_hook(hook)
    assert_same_gradients(model, CONFIGS[name])
    assert seen == set(leaves)


def assert_same_gradients(model: XUT, config: XUTConfig) -> None:
    plain = shaken(config)
    for each in (model, plain):
        each(**some_inputs(config)).square().sum().backward()
    named = zip(plain.named_parameters(), model.parameters(), strict=True)
    for (parameter, wanted), ours in named:
        assert wanted.grad is not None, parameter
        torch.testing.assert_close(ours.grad, wanted.grad, rtol=1e-3, atol=1e-4)
