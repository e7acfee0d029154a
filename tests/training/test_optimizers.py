from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch

from hdm.errors import ConfigError
from hdm.models.xut import XUT
from hdm.training.settings import Optimizer
from hdm.training.state.average import Average
from hdm.training.state.optimizers import Optimizers, rate_factor
from tests.small_models import TINY

SMALL = replace(TINY, width=16, head_size=8, mlp_width=32, depth=2)


@pytest.mark.parametrize("modulation", ["shared", "per_block"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("per_fan_in", [False, True])
def test_every_parameter_is_updated_once(
    modulation: Literal["shared", "per_block"], kind: str, per_fan_in: bool
) -> None:
    model = XUT(replace(SMALL, modulation=modulation, qk_norm=True, final_norm=True))
    optimizers = Optimizers(model, Optimizer(kind=kind, per_fan_in=per_fan_in))
    taken = [
        id(value)
        for optimizer in optimizers.all.values()
        for group in optimizer.param_groups
        for value in group["params"]
    ]
    assert sorted(taken) == sorted(id(value) for value in model.parameters())


def test_muon_takes_the_blocks_matrices_and_nothing_else() -> None:
    model = XUT(SMALL)
    names = {id(value): name for name, value in model.named_parameters()}
    groups = Optimizers(model, Optimizer(kind="muon")).all["muon"].param_groups
    taken = {names[id(value)] for group in groups for value in group["params"]}
    # 2 plain, 2 encoder and 2 decoder blocks: qkv, out, w12, w3; the decoder's have q, kv, out of
    # cross-attention too.
    assert len(taken) == 6 * 4 + 2 * 3
    assert {name.rsplit(".", 2)[1] for name in taken} == {"qkv", "q", "kv", "out", "w12", "w3"}


def test_rates_by_fan_in_are_those_of_the_recipe() -> None:
    model = XUT(SMALL)
    names = {id(value): name for name, value in model.named_parameters()}
    adamw = Optimizers(model, Optimizer(learning_rate=0.5, per_fan_in=True)).all["adamw"]
    rates = {
        names[id(value)]: group["lr"] for group in adamw.param_groups for value in group["params"]
    }
    assert rates["ctx_proj.weight"] == 0.5 / 8
    assert rates["in_patch.proj.weight"] == 0.5 / (4 * 2 * 2)
    assert rates["ctx_proj.bias"] == 0.5 / 16
    assert rates["backbone.enc_blocks.0.0.mlp.w3.weight"] == 0.5 / 32


def test_only_weights_of_layers_decay() -> None:
    model = XUT(SMALL)
    names = {id(value): name for name, value in model.named_parameters()}
    adamw = Optimizers(model, Optimizer(weight_decay=0.1)).all["adamw"]
    decays = {
        names[id(value)]: group["weight_decay"]
        for group in adamw.param_groups
        for value in group["params"]
    }
    assert decays["in_patch.proj.weight"] == decays["out_patch.proj.weight"] == 0.1
    still = [name for name in names.values() if name.endswith((".bias", "norm.weight", "freqs"))]
    assert still
    assert {decays[name] for name in still} == {0.0}


def test_cosine_with_warmup_against_its_formula() -> None:
    settings = Optimizer(schedule="cosine", warmup_images=1000, final_rate=0.01)
    assert rate_factor(settings, 250, 9000) == 0.25
    assert rate_factor(settings, 1000, 9000) == 1.0
    for seen in (2000, 5000, 8999):
        expected = 0.01 + 0.99 * (1 + math.cos(math.pi * (seen - 1000) / 8000)) / 2
        assert rate_factor(settings, seen, 9000) == pytest.approx(expected)
    assert rate_factor(settings, 9000, 9000) == pytest.approx(0.01)


def test_wsd_falls_over_the_last_fifth() -> None:
    settings = Optimizer(schedule="wsd", final_rate=0.1)
    assert [rate_factor(settings, seen, 1000) for seen in (1, 500, 800)] == [1, 1, 1]
    assert rate_factor(settings, 900, 1000) == pytest.approx(0.55)
    assert rate_factor(settings, 1000, 1000) == pytest.approx(0.1)


def test_constant_stays() -> None:
    assert {rate_factor(Optimizer(schedule="constant"), seen, 100) for seen in range(1, 101)} == {
        1.0
    }


def gradients_of(model: XUT, count: int) -> list[list[torch.Tensor]]:
    torch.manual_seed(0)
    return [[torch.randn_like(value) for value in model.parameters()] for _ in range(count)]


def take(model: XUT, optimizers: Optimizers, gradients: list[list[torch.Tensor]]) -> None:
    for each in gradients:
        for value, gradient in zip(model.parameters(), each, strict=True):
            value.grad = gradient.clone()
        optimizers.step(0.5)


def test_eight_bits_move_about_as_thirty_two_do_and_are_restored_to_the_bit() -> None:
    pytest.importorskip("bitsandbytes")
    wide = replace(SMALL, width=64, num_heads=4, head_size=16, mlp_width=128)
    models = [XUT(wide) for _ in range(3)]
    start = {name: value.clone() for name, value in models[0].state_dict().items()}
    for model in models:
        model.load_state_dict(start)
    gradients = gradients_of(models[0], 6)
    settings = Optimizer(learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.99))
    full, eight = (
        Optimizers(models[0], settings),
        Optimizers(models[1], settings.model_copy(update={"state_bits": 8})),
    )
    take(models[0], full, gradients[:3])
    take(models[1], eight, gradients[:3])
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (one - two).norm().item() < 0.1 * (one - start[name]).norm().item(), name
    bytes_of = [
        sum(value.nbytes for value in optimizers.tensors().values()) for optimizers in (full, eight)
    ]
    assert bytes_of[1] < bytes_of[0] / 2, "small tensors keep 32 bits"

    models[2].load_state_dict(models[1].state_dict())
    restored = Optimizers(models[2], settings.model_copy(update={"state_bits": 8}))
    restored.load({name: value.clone() for name, value in eight.tensors().items()})
    take(models[1], eight, gradients[3:])
    take(models[2], restored, gradients[3:])
    assert all(
        torch.equal(one, two)
        for one, two in zip(models[1].parameters(), models[2].parameters(), strict=True)
    )


def test_eight_bits_without_their_package_are_refused() -> None:
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("it is installed")
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        Optimizers(XUT(SMALL), Optimizer(state_bits=8))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_restored_optimizer_goes_on_as_if_nothing_had_been(kind: str) -> None:
    first = XUT(SMALL)
    gradients = gradients_of(first, 4)
    before = Optimizers(first, Optimizer(kind=kind))
    take(first, before, gradients[:2])
    second = XUT(SMALL)
    second.load_state_dict(first.state_dict())
    after = Optimizers(second, Optimizer(kind=kind))
    after.load({name: value.clone() for name, value in before.tensors().items()})
    take(first, before, gradients[2:])
    take(second, after, gradients[2:])
    assert all(
        torch.equal(one, two)
        for one, two in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_average_against_a_naive_one() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.8)
    expected = model.weight.detach().double().clone()
    for step in range(40):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average.model.weight.double(), expected, atol=1e-5, rtol=1e-5)
