"""Compiled and recomputed blocks: the same numbers, and what they are for."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from hdm.architecture import XUTConfig
from hdm.models.execution import (
    compile_blocks,
    drop_updates,
    recompute_activations,
    recomputed_blocks,
)
from hdm.models.tread import draw_kept
from hdm.models.xut import XUT
from tests.small_models import SMALL, shaken

SIZES: dict[str, Any] = dict(mlp_width=48, text_width=12)
CONFIG = replace(SMALL, **SIZES, depth=3, dec_blocks=2, post_blocks=2)


@pytest.fixture(autouse=True)
def _no_code_from_before() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def model(config: XUTConfig = CONFIG) -> XUT:
    return shaken(config)


def step(made: XUT, num_text: int = 6, rate: float = 0.5, seed: int = 1) -> list[torch.Tensor]:
    """A training step on 4 × 4 image tokens: its loss and all gradients."""
    generator = torch.Generator().manual_seed(seed)
    batch = 2
    latent, text = (
        torch.randn(batch, 4, 8, 8, generator=generator),
        torch.randn(batch, num_text, 12, generator=generator),
    )
    mask, kept = torch.arange(num_text).expand(batch, -1) < 4, draw_kept(batch, 16, rate, generator)
    positions = torch.rand(batch, 16, 2, generator=generator)
    out = made(
        latent,
        torch.rand(batch, generator=generator),
        text,
        positions=positions,
        text_mask=mask,
        kept=kept,
    )
    loss = (out - latent).square().mean()
    made.zero_grad()
    loss.backward()
    return [
        loss.detach(),
        *(parameter.grad.clone() for parameter in made.parameters() if parameter.grad is not None),
    ]


def assert_near(ours: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("num_blocks", "share", "numbers"),
    [(8, 0, []), (8, 1, range(8)), (8, 0.5, [0, 2, 4, 6]), (5, 0.4, [0, 2])],
)
def test_recomputed_blocks_are_spread_and_spare_the_last(num_blocks, share, numbers):
    assert sorted(recomputed_blocks(num_blocks, share)) == list(numbers)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_recomputing_changes_no_number(share):
    wanted, made = step(model()), model()
    recompute_activations(made, share)
    assert_near(step(made), wanted)


def saved_bytes(share: float) -> int:
    """Of the tensors that autograd holds between forward and backward, each storage once, without
    the weights.
    """
    made, held = model(), {}
    recompute_activations(made, share)
    weights = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = made(torch.randn(4, 4, 8, 8), torch.rand(4), torch.randn(4, 6, 12))
    assert out.requires_grad
    return sum(
        tensor.untyped_storage().nbytes()
        for pointer, tensor in held.items()
        if pointer not in weights
    )


def test_the_more_blocks_are_recomputed_the_less_is_kept():
    none, half, every = (saved_bytes(share) for share in (0.0, 0.5, 1.0))
    assert half < 0.65 * none
    assert every < 0.25 * none


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        (CONFIG, 0.5),
        (CONFIG.recommended(), 0.5),
        (replace(CONFIG.recommended(), modulation="per_block"), 0.0),
    ],
)
def test_compiled_blocks_break_no_graph_and_are_not_compiled_anew_in_later_steps(config, rate):
    """Captions are longer and shorter from step to step."""
    wanted, made = step(model(config), rate=rate), model(config)
    compile_blocks(made, "eager")
    assert_near(step(made, rate=rate), wanted)
    compiled = counters["stats"]["unique_graphs"]
    for num_text in (8, 16, 7):
        step(made, num_text=num_text, rate=rate, seed=num_text)
    assert counters["stats"]["unique_graphs"] == compiled <= 6  # not one for each of the ten blocks
    assert not counters["graph_break"]


def test_compiled_blocks_can_be_recomputed():
    # An encoder block and a decoder block with a skip: each kind takes seconds to compile.
    config = replace(CONFIG, depth=1, dec_blocks=1, prev_blocks=0, post_blocks=0)
    wanted, made = step(model(config)), model(config)
    compile_blocks(made, "aot_eager")
    recompute_activations(made, 1.0)
    assert_near(step(made), wanted)


def test_dropout_leaves_out_a_share_of_every_update_and_recomputes_the_same():
    torch.manual_seed(5)
    wanted = step(model())
    made = model()
    drop_updates(made, 0.3)
    assert_near(step(made.eval()), wanted)

    made.train()
    torch.manual_seed(5)
    kept = step(made)
    assert not torch.equal(kept[0], wanted[0])
    recompute_activations(made, 1.0)
    torch.manual_seed(5)
    assert_near(step(made), kept)
    torch.manual_seed(6)
    assert not torch.equal(step(made)[0], kept[0])

    # Of each update, three features in ten.
    block = next(iter(made.blocks()))
    z, update = torch.zeros(4, 50, 32), torch.ones(4, 50, 32)
    added = block._add(z, z, torch.ones(4, 1, 32), update)
    assert added.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (added == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
