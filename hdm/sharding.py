"""Tensors that are spread over the processes of a training (FSDP2's DTensors): each process holds a
shard, some rows, of each.

Everything here takes plain tensors too, which are their own only shard: who updates, averages or
saves tensors need not ask which they are. What works number by number works on shards (`local`);
what needs whole tensors puts them together (`whole`, `all_gather`) and takes its share of the
result (`share`). Putting together is done by all processes at the same place, or they wait for each
other for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:  # where nothing is sharded, nobody waits the second that this import takes
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "device_mesh")


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """This process's shard, which shares its memory; of a plain tensor all of it."""
    return tensor.to_local() if is_sharded(tensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All shards put together; of a plain tensor itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor that every process holds, cut as another of its shape
    is.
    """
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor, like.device_mesh, like.placements, src_data_rank=None
    ).to_local()


def all_gather(shard: Tensor, like: Tensor) -> Tensor:
    """The whole tensor, from the shards that all processes hold; cut as another of its shape is."""
    if not is_sharded(like):
        return shard
    from torch.distributed.tensor import DTensor

    return whole(
        DTensor.from_local(
            shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )
    )


def like_layout(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the memory format and the sharding of another of its shape; its precision
    stays.
    """
    result = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False)
    local(result).copy_(share(tensor, like))
    return result


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the first process, sharded ones in the computer's memory, one after another;
    {} on the others.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    whole_tensors = {}
    for name, tensor in tensors.items():
        together = whole(tensor)
        if first:
            whole_tensors[name] = together.cpu() if is_sharded(tensor) else together
    return whole_tensors


@torch.no_grad()
def finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all numbers of this process's shards are finite; of no tensors they are."""
    are_finite = [torch.isfinite(local(tensor)).all() for tensor in tensors.values()]
    return not are_finite or bool(torch.stack(are_finite).all())


def norms(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of each tensor, of all its shards, (len(tensors),)."""
    lengths = torch.stack(torch._foreach_norm([local(tensor.detach()) for tensor in tensors]))
    if any(map(is_sharded, tensors)):
        squares = lengths.square()
        dist.all_reduce(squares)
        lengths = squares.sqrt()
    return lengths
