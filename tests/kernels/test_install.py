"""Kernels come and go by one call each, and leave everything but speed as it was."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import hdm
from hdm.kernels import Installed, install, remove
from hdm.models.execution import compile_blocks, recompute_activations
from hdm.models.xut import XUT
from tests.kernels.test_replaced_modules import Shifted, ShiftedWeight
from tests.models.test_xut import TINY, VARIANTS, relative_error, some_inputs
from tests.small_models import changes, shaken

FEW_BLOCKS: dict[str, Any] = dict(depth=1, dec_blocks=1, prev_blocks=0, post_blocks=0)
"""An encoder block and a decoder block with a skip: each kind takes seconds to compile."""


def types(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


def step(model: XUT) -> list[Tensor]:
    """A training step: its output and all gradients."""
    model.zero_grad()
    out = model(**some_inputs(model.config))
    out.square().mean().backward()
    return [
        out.detach(),
        *(value.grad.clone() for value in model.parameters() if value.grad is not None),
    ]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: changes(config, TINY))
def test_outputs_and_gradients_are_those_without_kernels(config) -> None:
    model = shaken(config)
    with torch.no_grad():
        wanted = [model(**some_inputs(config)), *step_of(model)]
        assert install(model).skipped == ()
        ours = [model(**some_inputs(config)), *step_of(model)]
    for mine, plain in zip(ours, wanted, strict=True):
        assert relative_error(mine, plain) < 1e-5


def step_of(model: XUT) -> list[Tensor]:
    with torch.enable_grad():
        return step(model)


def test_bfloat16_is_as_near_to_float32_as_without_kernels() -> None:
    config = TINY.recommended()
    model = shaken(config)
    exact = step(model)

    def errors() -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            found = step(model)
        return [relative_error(mine, true) for mine, true in zip(found, exact, strict=True)]

    plain = errors()
    install(model)
    for ours, without in zip(errors(), plain, strict=True):
        assert ours < 1.5 * without + 1e-3


def test_removing_makes_the_very_model_that_was_there() -> None:
    model = shaken(TINY)
    before = types(model)
    wanted = step(model)
    swapped = install(model).swapped
    assert types(model) != before
    assert remove(model) == swapped
    assert types(model) == before
    assert all(torch.equal(mine, plain) for mine, plain in zip(step(model), wanted, strict=True))
    assert remove(model) == 0


def test_tensors_and_modules_stay_the_same_objects() -> None:
    model = shaken(TINY)
    state = model.state_dict()
    modules = list(model.modules())
    names = [type(module).__name__ for module in modules]
    install(model)
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == state[name].data_ptr()
    assert all(mine is old for mine, old in zip(model.modules(), modules, strict=True))
    # Libraries of adapters look for layers by their class's name.
    assert [type(module).__name__ for module in model.modules()] == names


def test_a_second_call_changes_nothing() -> None:
    model = shaken(TINY)
    install(model)
    found = types(model)
    assert install(model) == Installed(0, ())
    assert types(model) == found


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_has_kernels_and_weights_of_its_own(duplicate: Callable[[XUT], XUT]) -> None:
    model = shaken(TINY)
    install(model)
    other = duplicate(model)
    assert types(other) == types(model)
    with torch.no_grad():
        wanted = model(**some_inputs(TINY))
        assert torch.equal(other(**some_inputs(TINY)), wanted)
        for parameter in other.parameters():
            parameter.mul_(0.5)
        assert torch.equal(model(**some_inputs(TINY)), wanted)


def test_what_was_changed_before_is_skipped_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    config = replace(TINY, qk_norm=True)
    whole = install(shaken(config)).swapped
    model = shaken(config)
    block = next(model.blocks())
    block.mlp.w3 = Shifted(block.mlp.w3, 0.5)  # type: ignore[assignment]
    block.attn.q_norm.register_forward_hook(lambda *_: None)
    parametrize.register_parametrization(block.attn.qkv, "weight", ShiftedWeight())
    block.attn.out.forward = block.attn.out.forward  # type: ignore[method-assign]

    with caplog.at_level(logging.INFO, "hdm"):
        found = install(model)
    prefix = "prev_tread_trns.blocks.0."
    names = {"mlp.w3", "attn.q_norm", "attn.qkv", "attn.out"}
    assert set(found.skipped) == {prefix + name for name in names}
    assert found.swapped == whole - 4
    assert f"{whole - 4} modules have CPU kernels; 4 are called as they are" in caplog.text
    assert prefix + "attn.qkv" in caplog.text


def test_kernels_go_from_under_a_parametrization_too() -> None:
    model = shaken(TINY)
    install(model)
    norm = next(model.blocks()).attn_pre_norm.norm
    parametrize.register_parametrization(norm, "weight", ShiftedWeight())
    wanted = model(**some_inputs(TINY))
    remove(model)
    assert not any(kind.__module__.startswith("hdm.kernels") for kind in type(norm).__mro__)
    torch.testing.assert_close(model(**some_inputs(TINY)), wanted, rtol=1e-4, atol=1e-5)
    parametrize.remove_parametrizations(norm, "weight", leave_parametrized=False)
    plain = shaken(TINY)
    torch.testing.assert_close(model(**some_inputs(TINY)), plain(**some_inputs(TINY)))


def test_weights_that_are_replaced_are_read() -> None:
    """A kernel holds no parameter of its own."""
    model, other = shaken(TINY), shaken(TINY)
    install(model)
    for each in (model, other):
        for module in each.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach() * 0.7))
    wanted = other(**some_inputs(TINY))
    torch.testing.assert_close(model(**some_inputs(TINY)), wanted, rtol=1e-4, atol=1e-5)


def test_off_the_cpu_nothing_is_installed() -> None:
    with torch.device("meta"):
        model = XUT(TINY)
    before = types(model)
    assert install(model) == Installed(0, ())
    assert types(model) == before


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_and_recomputed_blocks_have_them_too(compiled: bool) -> None:
    torch.compiler.reset()
    config = replace(TINY, **FEW_BLOCKS).recommended()
    wanted = step(shaken(config))
    model = shaken(config)
    if compiled:
        compile_blocks(model, "aot_eager")
    recompute_activations(model, 1.0)
    assert install(model).swapped > 0
    for mine, plain in zip(step(model), wanted, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)
    torch.compiler.reset()


def test_the_model_with_kernels_is_one_graph_for_a_compiler() -> None:
    model = shaken(TINY.recommended())
    wanted = model(**some_inputs(TINY))
    install(model)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(**some_inputs(TINY)), wanted, rtol=1e-4, atol=1e-6)
    torch.compiler.reset()


def test_undocumented_operators_of_torch_stand_in_this_package_alone() -> None:
    """Documented are `torch._dynamo.config` and, as a beta, the family `torch._foreach_…`."""
    private = re.compile(
        r"torch\.ops\b|torch\.backends\.mkldnn|torch\._(?!_|dynamo\.config|foreach_)\w+"
    )
    top = Path(hdm.__file__).parent
    found = {
        file.relative_to(top).parts[0]
        for folder in (top, top.parent / "flows", top.parent / "tasks")
        for file in folder.rglob("*.py")
        if private.search(file.read_text())
    }
    assert found == {"kernels"}


def test_the_models_know_no_kernels() -> None:
    for file in (Path(hdm.__file__).parent / "models").rglob("*.py"):
        assert "hdm.kernels" not in file.read_text(), file
