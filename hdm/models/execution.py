"""How a model's blocks are run in training: compiled, or with activations that are computed anew
instead of kept.

Neither changes the result beyond rounding; dropout, which is set here too, does. All work block by
block: blocks of one kind share their compiled code.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from hdm.models.denoiser import Denoiser


def recomputed_blocks(num_blocks: int, share: float) -> frozenset[int]:
    """Numbers of the blocks whose activations are not kept: `share` of them, spread evenly from the
    first.

    The last block is spared the longest: its activations are gone before the first ones are
    computed anew, so that the two never add up.
    """
    count = round(num_blocks * share)
    return frozenset(
        number
        for number in range(num_blocks)
        if -(-(number + 1) * count // num_blocks) > -(-number * count // num_blocks)
    )


def compile_blocks(model: Denoiser, backend: str = "inductor") -> None:
    """Compile each block's forward pass, without a graph break. Sequences may then have any length
    without compiling anew.
    """
    # Six kinds of call (with and without a skip, kept tokens and all, the last block), for each
    # size of micro-batch.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    for block in model.blocks():
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, backend=backend)


def drop_updates(model: Denoiser, rate: float) -> None:
    """Dropout, in training mode, of what attention and feed-forward add to the tokens: a `rate` of
    the features of each update.

    Call it before `compile_blocks` and `recompute_activations`.
    """
    for block in model.blocks():
        block.dropout = rate


def recompute_activations(model: Denoiser, share: float) -> None:
    """Keep only the inputs of `share` of the blocks (`recomputed_blocks`) and run these again in
    the backward pass.

    Call it after `compile_blocks`, whose code is then run twice.
    """
    blocks = list(model.blocks())
    for number in recomputed_blocks(len(blocks), share):
        block = blocks[number]
        # What is dropped has to be dropped again; where nothing is drawn, no generator's state has
        # to be kept.
        drawn = block.dropout > 0
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=drawn
        )


def shard(model: Denoiser, mesh: DeviceMesh) -> None:
    """Spread a model's parameters over processes: each block is put together when its turn comes,
    and what lies outside them for the whole pass. All processes then have to call the model
    together, and its parameters are others than before.

    Args:
        model: on any device; its shards go to the mesh's.
        mesh: of the processes, of one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks():
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The root too, which FSDP2 would leave whole after a pass: what follows, a step of the
    # optimizer or another forward pass, wants shards.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
