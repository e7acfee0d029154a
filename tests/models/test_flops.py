"""Counted FLOPs against torch's own counter, run over the model itself."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hdm.architecture import XUTConfig
from hdm.models.flops import Pass, forward_flops, training_flops
from hdm.models.tread import draw_kept
from hdm.models.xut import XUT
from tests.small_models import TINY

SIZES: dict[str, Any] = dict(width=48, num_heads=3, head_size=16, mlp_width=80, text_width=20)
SMALL = replace(TINY, **SIZES, depth=2, dec_blocks=2, post_blocks=2)
CASES: dict[str, tuple[XUTConfig, dict[str, Any]]] = {
    "published": (SMALL, {}),
    "half dropped": (SMALL, {"tread_rate": 0.5}),
    "recommended": (SMALL.recommended(), {"tread_rate": 0.3}),
    "per block": (
        replace(SMALL, modulation="per_block", aspect_embedding=False, patch_size=1, channels=3),
        {"tread_rate": 0.5},
    ),
    "a route of its own": (SMALL, {"tread_rate": 0.5, "route": (2, 6)}),
    "a route to the end": (SMALL, {"tread_rate": 0.5, "route": (1, 9)}),
    "ends in a decoder": (
        replace(SMALL, dec_blocks=1, post_blocks=0, prev_blocks=0, depth=3),
        {"tread_rate": 0.25},
    ),
}


def product(
    x: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size, **__: object
) -> int:
    return 2 * math.prod(out_shape) * weight[1]


def counted(
    config: XUTConfig,
    tread_rate: float = 0.0,
    route: tuple[int, int] | None = None,
    backward: bool = False,
) -> int:
    """Of 2 samples with 20 image and 6 text tokens."""
    torch.manual_seed(0)
    model, p = XUT(config), config.patch_size
    latent, text = (
        torch.randn(2, config.channels, 4 * p, 5 * p),
        torch.randn(2, 6, config.text_width),
    )
    kept = draw_kept(2, 20, tread_rate)
    # torch counts the fused attention of accelerators only: on the CPU it is made to run, and so
    # counted, as two products.
    counter = FlopCounterMode(display=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        out = model(latent, torch.rand(2), text, kept=kept, route=route)
        if backward:
            out.square().mean().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CASES)
def test_a_forward_pass_counts_as_torch_counts_it(name):
    config, given = CASES[name]
    assert forward_flops(config, Pass(20, 6, batch=2, **given)) == counted(config, **given)


def test_a_training_step_is_three_forward_passes():
    """Less the gradients of inputs, which nobody asks for."""
    ours, theirs = (
        training_flops(SMALL, Pass(20, 6, batch=2, tread_rate=0.5)),
        counted(SMALL, 0.5, backward=True),
    )
    inputs = 2 * (
        2 * 20 * 16 * 48 + 2 * 6 * 20 * 48 + 2 * 48 * 48 + 2 * 48
    )  # latent, text, timestep, aspect
    assert ours - inputs == theirs


def test_recomputed_blocks_are_counted_once_more():
    plain, everything = (
        training_flops(SMALL, Pass(20, 6), frozenset(blocks)) for blocks in ((), range(9))
    )
    ends = forward_flops(replace(SMALL, prev_blocks=0, post_blocks=0), Pass(20, 6))
    forward = forward_flops(SMALL, Pass(20, 6))
    assert plain == 3 * forward
    assert forward - ends < everything - plain < forward
