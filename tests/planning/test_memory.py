"""Memory by formula, held against the tensors that autograd keeps and against the most that live at once in a step."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hdm.architecture import XUTConfig
from hdm.config import Phase, TrainSettings
from hdm.models import fused
from hdm.models.execution import recompute_activations
from hdm.models.tread import draw_kept
from hdm.models.xut import XUT
from hdm.planning.memory import Form, block_bytes, block_tokens, input_bytes, output_bytes, parameters, training_memory

SIDE, TEXT, BATCH = 16, 64, 8
PUBLISHED = XUTConfig(
    width=128, num_heads=4, head_size=32, mlp_width=384, text_width=64, depth=2, enc_blocks=1, dec_blocks=2, prev_blocks=1, post_blocks=2
)
MODELS = {"published": PUBLISHED, "recommended": PUBLISHED.recommended()}
ACCELERATOR, CPU = False, True


@pytest.fixture(params=[ACCELERATOR, CPU], ids=["accelerator", "cpu"])
def by_hand(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The layers as they run on the CPU, or in the form that they have elsewhere."""
    if request.param is ACCELERATOR:
        monkeypatch.setattr(fused, "_by_hand", lambda tensor: False)
    return request.param


class Step:
    """One micro-batch of random numbers."""

    def __init__(self, config: XUTConfig, batch: int, half: bool, rate: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model, self.half = XUT(config), half
        self.latent = torch.randn(batch, config.channels, 2 * SIDE, 2 * SIDE)
        self.given: dict[str, Any] = {
            "timestep": torch.rand(batch), "text": torch.randn(batch, TEXT, config.text_width),
            "positions": torch.randn(batch, SIDE**2, 2), "log_aspect": torch.zeros(batch),
            "text_mask": torch.ones(batch, TEXT, dtype=torch.bool), "kept": draw_kept(batch, SIDE**2, rate),
        }  # fmt: skip

    def loss(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            predicted = self.model(self.latent, **self.given)
        return (predicted.float() - self.latent).square().mean()


def kept_bytes(step: Step) -> int:
    """Of the storages that autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in step.model.parameters()}
    storages: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step.loss()
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


class Living(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still there, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place not in self._sizes:
            self._sizes[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, place)

    def _remove(self, place: int) -> None:
        self.now -= self._sizes.pop(place)


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("half", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_blocks_keep_what_was_reckoned(name: str, half: bool, rate: float, by_hand: bool) -> None:
    config, form = MODELS[name], Form(2 if half else 4, by_hand)
    blocks = block_tokens(config, None, (SIDE**2, TEXT), rate)
    ends = input_bytes(config, (SIDE**2, TEXT), form) + output_bytes(config, SIDE**2, form)
    reckoned = 4 * (sum(block_bytes(config, block, form) for block in blocks) + ends) + (2 * parameters(config).matrices if half else 0)
    assert reckoned == pytest.approx(kept_bytes(Step(config, 4, half, rate)), rel=0.025)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("half", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_peaks_where_it_was_reckoned(name: str, half: bool, share: float, by_hand: bool) -> None:
    step = Step(MODELS[name], BATCH, half)
    recompute_activations(step.model, share)
    with Living() as living:
        for _ in range(2):  # gradients of the first are there in the second
            step.loss().backward()
    phase = Phase(resolution=256, num_images=1, batch_size=BATCH, tread_rate=0.0, checkpoint_blocks=share)
    settings = TrainSettings(model=MODELS[name], precision="bfloat16" if half else "float32")
    found = training_memory(settings, phase, (SIDE**2, TEXT), on_cpu=by_hand)
    assert found.gradients + found.copies + found.sample * BATCH == pytest.approx(living.peak, rel=0.1)


def test_parameters_and_what_optimizers_keep_of_them() -> None:
    assert parameters(XUTConfig.preset("base")).total == 343_176_208
    adamw, muon = (
        training_memory(TrainSettings(model=PUBLISHED), Phase(**phase), (4, 4), True).optimizer
        for phase in (
            {"resolution": 8, "num_images": 1, "batch_size": 1},
            {"resolution": 8, "num_images": 1, "batch_size": 1, "optimizer": {"kind": "muon"}},
        )
    )
    assert adamw == 8 * parameters(PUBLISHED).total
    assert adamw - muon == 4 * parameters(PUBLISHED).muon


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    phase = Phase(resolution=256, num_images=1, batch_size=512, micro_batch=8)
    found, room = training_memory(TrainSettings(model=PUBLISHED), phase, (256, 64), on_cpu=False), 2e9
    most = found.largest_micro_batch(room)
    assert found.fixed + most * found.sample <= room < found.fixed + (most + 1) * found.sample
    assert found.largest_micro_batch(found.weights) == 0
