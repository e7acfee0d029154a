"""Tensors that are spread over the processes of a training (FSDP2's DTensors): each process holds a shard, some rows, of each.

Everything here takes plain tensors too, which are their own only shard: who updates, averages or saves tensors need not ask which they
are. What works number by number works on shards (`local`); what needs whole tensors puts them together (`whole`, one at a time) and
takes its share of the result (`share`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """This process's shard, which shares its memory; of a plain tensor all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All shards put together; of a plain tensor itself. All processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor that every process holds, cut as another of its shape is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


def joined(shard: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which every process holds a shard, cut as another of its shape is. All processes have to ask."""
    if not isinstance(like, DTensor):
        return shard
    return DTensor.from_local(shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, in its own precision, in the memory format of another of its shape and spread as that is."""
    found = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False)
    local(found).copy_(share(tensor, like))
    return found


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the first process, sharded ones in the computer's memory, one after another; {} on the others.

    All processes have to ask where a tensor is sharded.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    found = {}
    for name, tensor in tensors.items():
        together = whole(tensor)
        if first:
            found[name] = together.cpu() if isinstance(tensor, DTensor) else tensor
    return found


def norms(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of each tensor, of all its shards, (len(tensors),). All processes have to ask where they are sharded."""
    found = torch.stack(torch._foreach_norm([local(tensor.detach()) for tensor in tensors]))
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        squares = found.square()
        dist.all_reduce(squares)
        found = squares.sqrt()
    return found
