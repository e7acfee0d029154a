"""Adapters beside the layers of a denoiser: where they go, and what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hdm.errors import ConfigError
from hdm.kernels import install
from hdm.models.adapters import adapter_tensors, attach, targets, targets_of
from hdm.models.settings import AdapterSettings
from hdm.models.xut import XUT
from tests.models.test_xut import some_inputs
from tests.small_models import SMALL, shaken

METHODS = ["lora", "dora", "loha", "lokr", "ia3"]
FIELD = "train.phases.0.adapter"
EVERYWHERE = {"targets": ["*"]}


def settings(method: str, **changes: Any) -> AdapterSettings:
    sizes = {} if method == "ia3" else {"rank": 4, "alpha": 2.0}
    return AdapterSettings.model_validate({"method": method, **sizes, **changes})


def layers(model: nn.Module) -> set[str]:
    kinds = (nn.Linear, nn.Conv2d)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


def names(patterns: list[str]) -> list[str]:
    return [one.name for one in targets_of(SMALL, settings("lora", targets=patterns), FIELD)]


@pytest.mark.parametrize("method", METHODS)
def test_a_new_adapter_changes_nothing_and_freezes_the_rest(method: str) -> None:
    model = shaken(SMALL)
    given = some_inputs(SMALL)
    plain = model(**given).detach()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attach(model, settings(method, **EVERYWHERE), FIELD)
    torch.testing.assert_close(model(**given).detach(), plain, rtol=1e-5, atol=1e-6)
    trained = {id(value) for value in model.parameters() if value.requires_grad}
    assert trained == {id(value) for name, value in model.named_parameters() if "default" in name}
    kept = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items()}
    assert [name for name, value in before.items() if not torch.equal(value, kept[name])] == []


@pytest.mark.parametrize("method", METHODS)
def test_every_layer_gets_a_gradient_through_kernels_as_without(method: str) -> None:
    """With kernels that read past their layers, an adapter there would learn nothing."""
    gradients = []
    for kernels in (False, True):
        model = shaken(SMALL)
        torch.manual_seed(1)
        attach(model, settings(method, **EVERYWHERE), FIELD)
        own = {name: value for name, value in model.named_parameters() if value.requires_grad}
        with torch.no_grad():
            # Where one factor is still zero, the other gets no gradient.
            for value in own.values():
                value.add_(torch.randn_like(value) * 0.1)
        if kernels:
            assert install(model).swapped > 0
        torch.manual_seed(2)
        model(**some_inputs(SMALL)).square().mean().backward()
        gradients.append({name: value.grad for name, value in own.items()})
    plain, ours = gradients
    adapted = {name for name in layers(shaken(SMALL)) if any(f"{name}." in one for one in ours)}
    assert adapted == layers(shaken(SMALL))
    for name, gradient in ours.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-6)


def test_without_targets_every_linear_layer_of_the_blocks_has_one() -> None:
    chosen = [one.name for one in targets(shaken(SMALL), settings("lora"), FIELD)]
    parts = ("attn.qkv", "attn.out", "xattn.q", "xattn.kv", "xattn.out", "mlp.w12", "mlp.w3")
    assert set(chosen) == {
        name for name in layers(shaken(SMALL)) if name.endswith(parts) and "blocks" in name
    }
    assert chosen


def test_targets_are_names_their_ends_or_patterns() -> None:
    qkv = [name for name in layers(shaken(SMALL)) if name.endswith(".attn.qkv")]
    assert sorted(names(["attn.qkv"])) == sorted(names(["qkv"])) == sorted(qkv)
    assert names(["ctx_proj"]) == ["ctx_proj"]
    w3 = {name for name in layers(shaken(SMALL)) if name.endswith("w3") and "backbone" in name}
    assert set(names(["backbone.*.w3"])) == w3
    assert "in_patch.proj" in names(["in_patch.*"])


@pytest.mark.parametrize(
    ("pattern", "nearest"), [("atn.qkv", "attn.qkv"), ("*.w13", "w12"), ("ctx_prj", "ctx_proj")]
)
def test_targets_that_fit_no_layer_are_refused_with_the_nearest_names(
    pattern: str, nearest: str
) -> None:
    with pytest.raises(ConfigError, match="fits no layer") as caught:
        names(["attn.out", pattern])
    assert nearest in str(caught.value.do)
    assert caught.value.where == f"{FIELD}.targets"


def test_a_rank_of_a_layer_without_adapter_is_refused() -> None:
    unused = settings("lora", targets=["w3"], rank_pattern={"qkv": 2})
    with pytest.raises(ConfigError, match="'qkv' fits no layer"):
        targets_of(SMALL, unused, FIELD)


def test_ranks_and_alphas_follow_their_patterns_and_end_at_a_layers_side() -> None:
    asked = settings(
        "lora",
        targets=["*"],
        rank=16,
        rank_pattern={"w12": 2, "attn.*": 8},
        alpha_pattern={"w3": 32.0},
    )
    model = shaken(SMALL)
    chosen = {one.name: one for one in attach(model, asked, FIELD)}
    tensors = adapter_tensors(model)
    for name, one in chosen.items():
        assert tensors[f"{name}.lora_A.weight"].shape[0] == one.rank
        wanted = 2 if name.endswith("w12") else 8 if ".attn." in name else 16
        module: Any = model.get_submodule(name)
        weight = module.base_layer.weight
        assert one.rank == min(wanted, *weight.flatten(1).shape)
        alpha = 32.0 if name.endswith("w3") else 2.0
        # Lowering a rank leaves the scale as asked for.
        assert module.scaling["default"] == pytest.approx(alpha / wanted)
    assert chosen["addon_info_embs_proj.0"].rank == 1


def test_without_alpha_what_is_added_is_added_as_it_is() -> None:
    model = XUT(SMALL)
    asked = AdapterSettings(rank=4, rank_pattern={"w12": 2})
    for one in attach(model, asked, FIELD):
        module: Any = model.get_submodule(one.name)
        assert module.scaling["default"] == 1.0


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    model = XUT(SMALL)
    (one,) = attach(model, AdapterSettings(rank=9, alpha=6, rslora=True, targets=("ctx_proj",)), "")
    module: Any = model.get_submodule(one.name)
    assert module.scaling["default"] == pytest.approx(6 / 3)


@pytest.mark.parametrize(
    "changes", [{"rank": 8}, {"alpha": 2.0}, {"dropout": 0.1}, {"rank_pattern": {"w3": 2}}]
)
def test_what_a_method_does_not_have_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the method ia3 has no"):
        AdapterSettings(method="ia3", **changes)
    AdapterSettings.model_validate(AdapterSettings(method="ia3").model_dump())
