"""Memory by formula, held against the tensors that autograd keeps and against the most that live at
once in a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hdm.architecture import XUTConfig
from hdm.kernels import install
from hdm.models.execution import recompute_activations, shard
from hdm.models.tread import block_tokens, draw_kept
from hdm.models.xut import XUT
from hdm.sharding import local
from hdm.training.measures.memory import (
    Arithmetic,
    block_bytes,
    input_bytes,
    output_bytes,
    parameters,
    training_memory,
)
from hdm.training.settings import Phase, TrainSettings
from tests.small_models import TINY

SIDE, TEXT, BATCH = 16, 64, 8
SIZES: dict[str, Any] = dict(width=128, num_heads=4, head_size=32, mlp_width=384, text_width=64)
PUBLISHED = replace(TINY, **SIZES, depth=2, dec_blocks=2, post_blocks=2)
MODELS = {"published": PUBLISHED, "recommended": PUBLISHED.recommended()}
ACCELERATOR, CPU = False, True


@pytest.fixture(params=[ACCELERATOR, CPU], ids=["accelerator", "cpu"])
def by_hand(request: pytest.FixtureRequest) -> bool:
    """With kernels as on the CPU, or plain as elsewhere."""
    with_kernels: bool = request.param
    return with_kernels


class Step:
    """One micro-batch of random numbers."""

    def __init__(
        self, config: XUTConfig, batch: int, half: bool, rate: float = 0.0, by_hand: bool = True
    ) -> None:
        torch.manual_seed(0)
        self.model, self.half = XUT(config), half
        if by_hand:
            install(self.model)
        self.latent = torch.randn(batch, config.channels, 2 * SIDE, 2 * SIDE)
        self.given: dict[str, Any] = {
            "timestep": torch.rand(batch),
            "text": torch.randn(batch, TEXT, config.text_width),
            "positions": torch.randn(batch, SIDE**2, 2),
            "log_aspect": torch.zeros(batch),
            "text_mask": torch.ones(batch, TEXT, dtype=torch.bool),
            "kept": draw_kept(batch, SIDE**2, rate),
        }

    def loss(self) -> torch.Tensor:
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=self.half, cache_enabled=not dist.is_initialized()
        ):
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
    """Bytes of the storages that operations made and that are still there, and the most there
    were.

    Args:
        resized: storages are emptied and filled again, as those of a sharded model are; all of them
            are looked at after each operation, which is slow.
    """

    def __init__(self, resized: bool = False) -> None:
        super().__init__()
        self.resized = resized
        self.peak = self._bytes = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(local(leaf).untyped_storage())
        self.peak = max(self.peak, self._measured_anew() if self.resized else self._bytes)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        place, num_bytes = storage._cdata, storage.nbytes()
        if place in self._storages:
            return

        def gone(reference: weakref.ref[torch.UntypedStorage]) -> None:
            del self._storages[place]
            self._bytes -= num_bytes

        self._storages[place] = weakref.ref(storage, gone)
        self._bytes += num_bytes

    def _measured_anew(self) -> int:
        living = [reference() for reference in self._storages.values()]
        return sum(storage.nbytes() for storage in living if storage is not None)


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("half", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_blocks_keep_what_was_reckoned(name: str, half: bool, rate: float, by_hand: bool) -> None:
    config, form = MODELS[name], Arithmetic(2 if half else 4, by_hand)
    blocks = block_tokens(config, None, (SIDE**2, TEXT), rate)
    ends = input_bytes(config, (SIDE**2, TEXT), form) + output_bytes(config, SIDE**2, form)
    reckoned = 4 * (sum(block_bytes(config, block, form) for block in blocks) + ends) + (
        2 * parameters(config).matrices if half else 0
    )
    if not by_hand:
        # Of each norm torch keeps one tensor more on the CPU than an accelerator's fused one does.
        tokens = sum(block.seen * (2 if block.cross else 1) + block.given for block in blocks)
        tokens += SIDE**2 if config.final_norm else 0
        reckoned += 4 * 4 * config.width * tokens
    assert reckoned == pytest.approx(kept_bytes(Step(config, 4, half, rate, by_hand)), rel=0.025)


@pytest.mark.parametrize("sizes", [(4, 8), (7, 15)], ids=["24 tokens", "64 tokens"])
@pytest.mark.parametrize("name", MODELS)
def test_few_tokens_keep_the_weights_of_their_attention(
    name: str, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (side, text), config, form, batch = sizes, MODELS[name], Arithmetic(4, by_hand=True), 64
    monkeypatch.setattr(f"{__name__}.SIDE", side)
    monkeypatch.setattr(f"{__name__}.TEXT", text)
    blocks = block_tokens(config, None, (side**2, text), 0.0)
    ends = input_bytes(config, (side**2, text), form) + output_bytes(config, side**2, form)
    reckoned = batch * (sum(block_bytes(config, block, form) for block in blocks) + ends)
    assert reckoned == pytest.approx(kept_bytes(Step(config, batch, half=False)), rel=0.025)


@pytest.mark.parametrize(
    ("half", "share"), [(True, 1.0), (False, 0.5)], ids=["bfloat16-1.0", "float32-0.5"]
)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_peaks_where_it_was_reckoned(
    name: str, half: bool, share: float, by_hand: bool
) -> None:
    step = Step(MODELS[name], BATCH, half, by_hand=by_hand)
    recompute_activations(step.model, share)
    with Living() as living:
        for _ in range(2):  # gradients of the first are there in the second
            step.loss().backward()
    phase = Phase(
        resolution=256, num_images=1, batch_size=BATCH, tread_rate=0.0, checkpoint_blocks=share
    )
    settings = TrainSettings(model=MODELS[name], precision="bfloat16" if half else "float32")
    found = training_memory(settings, phase, (SIDE**2, TEXT), on_cpu=by_hand)
    assert found.gradients + found.copies + found.sample * BATCH == pytest.approx(
        living.peak, rel=0.1
    )


@pytest.fixture
def four_processes() -> Iterator[DeviceMesh]:
    """This one as the first of four whose messages go nowhere: memory is as if they did."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (4,))
    dist.destroy_process_group()


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("half", [True, False], ids=["bfloat16", "float32"])
def test_a_sharded_step_peaks_where_it_was_reckoned(
    half: bool, share: float, four_processes: DeviceMesh
) -> None:
    wide = replace(PUBLISHED, width=256, head_size=64, mlp_width=768, enc_blocks=2)
    step = Step(wide, 1, half)
    shard(step.model, four_processes)
    recompute_activations(step.model, share)
    with Living(resized=True) as living:
        for _ in range(2):
            step.loss().backward()
    phase = Phase(
        resolution=256, num_images=1, batch_size=4, tread_rate=0.0, checkpoint_blocks=share
    )
    settings = TrainSettings(
        model=wide, precision="bfloat16" if half else "float32", num_processes=4, sharding="full"
    )
    found = training_memory(settings, phase, (SIDE**2, TEXT), on_cpu=True)
    # The four blocks that are reckoned with are not all there where activations are the most.
    assert 0.85 < living.peak / (found.gradients + found.copies + found.sample) < 1.05
    held = sum(local(parameter).nbytes for parameter in step.model.parameters())
    assert found.weights == pytest.approx(held, rel=0.01)
    assert (found.optimizer, found.average) == (2 * found.weights, found.weights)


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
    found, room = (
        training_memory(TrainSettings(model=PUBLISHED), phase, (256, 64), on_cpu=False),
        2e9,
    )
    most = found.largest_micro_batch(room)
    assert found.fixed + most * found.sample <= room < found.fixed + (most + 1) * found.sample
    assert found.largest_micro_batch(found.weights) == 0
