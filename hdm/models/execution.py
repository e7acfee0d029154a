"""Execution of a model's blocks in training: compiled, with recomputed activations, or sharded.

None of these changes the result beyond rounding; dropout, which is set here too, does. All of them
work block by block; blocks of one kind share compiled code.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from hdm.models.denoiser import Denoiser


def recomputed_blocks(num_blocks: int, share: float) -> frozenset[int]:
    """Indices of the blocks whose activations are recomputed: `share` of them, spread evenly from
    the first.

    The last block comes last: its activations are freed before the first recomputation, so the two
    never add up.
    """
    count = round(num_blocks * share)
    found = set()
    before = 0
    for number in range(num_blocks):
        up_to_here = -(-(number + 1) * count // num_blocks)  # rounded up
        if up_to_here > before:
            found.add(number)
        before = up_to_here
    return frozenset(found)


def compile_blocks(model: Denoiser, backend: str = "inductor") -> None:
    """Compile each block's forward pass without graph breaks. Sequences of any length then use the
    same code.
    """
    # Six kinds of call (with and without a skip, kept tokens and all, the last block), for each
    # size of micro-batch.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    # Tells the compiler too, which `devices.deterministic` leaves out.
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
    for block in model.blocks():
        # fullgraph turns a graph break, which would silently cost speed, into an error. dynamic is
        # needed because padding and TREAD change the number of tokens from step to step.
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, backend=backend)


def drop_updates(model: Denoiser, rate: float) -> None:
    """In training mode, drop a `rate` of the features of each update that attention and
    feed-forward add to the tokens.

    Call it before `compile_blocks` and `recompute_activations`.
    """
    for block in model.blocks():
        block.dropout = rate


def recompute_activations(model: Denoiser, share: float, *, draws: bool = False) -> None:
    """For `share` of the blocks (`recomputed_blocks`), keep only the inputs, and run the blocks
    again in the backward pass.

    Call it after `compile_blocks`, so that the compiled code runs twice.

    Args:
        model: the denoiser.
        share: of its blocks.
        draws: whether something in the blocks draws random numbers, beside their own dropout.
    """
    blocks = list(model.blocks())
    for number in recomputed_blocks(len(blocks), share):
        block = blocks[number]
        # What is dropped has to be dropped again; where nothing is drawn, no generator's state has
        # to be kept.
        drawn = draws or block.dropout > 0
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=drawn
        )


def shard(model: Denoiser, mesh: DeviceMesh) -> None:
    """Shard a model's parameters across processes. Each block is gathered when it runs; parameters
    outside the blocks are gathered for the whole pass. Forward passes are then collective, and the
    model's parameter objects are replaced.

    Args:
        model: on any device; its shards go to the mesh's.
        mesh: of the processes, one-dimensional.
    """
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks():
        # The block's weights are freed after its forward pass, and gathered again in the backward
        # pass.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The root too, which FSDP2 would leave whole after a pass: what follows, a step of the
    # optimizer or another forward pass, wants shards.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
