"""Tensors sharded across the processes of a training (FSDP2's DTensors): each process holds a
shard, which is some rows, of each tensor.

All functions also accept plain tensors, which are their own only shard, so code that updates,
averages or saves tensors need not distinguish them. Elementwise work uses shards (`local`); work
that needs whole tensors gathers them (`whole`, `all_gather`) and keeps this process's part of the
result (`share`). Gathering is collective: every process must call it at the same point, or all of
them hang.
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
    # isinstance would need the import that is deferred above.
    return hasattr(tensor, "device_mesh")


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """This process's shard, which shares memory with the tensor; all of a plain tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered from all shards; a plain tensor itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a tensor that every process holds whole, sharded like another tensor
    of its shape.
    """
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Every process holds the whole tensor, so none has to send it (src_data_rank=None).
    return distribute_tensor(
        tensor, like.device_mesh, like.placements, src_data_rank=None
    ).to_local()


def all_gather(shard: Tensor, like: Tensor) -> Tensor:
    """The whole tensor, gathered from all processes' shards; sharded like another tensor of its
    shape.
    """
    if not is_sharded(like):
        return shard
    from torch.distributed.tensor import DTensor

    # Shape and stride have to be given, since shards may differ in size.
    return whole(
        DTensor.from_local(
            shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )
    )


def like_layout(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor with the memory format and sharding of another tensor of its shape; its
    precision is kept.
    """
    result = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False)
    local(result).copy_(share(tensor, like))
    return result


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors, whole, on rank 0, gathering sharded ones to main memory one at a time; {} on
    other ranks.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    whole_tensors = {}
    for name, tensor in tensors.items():
        # Every rank gathers, since it is a collective operation, though only rank 0 keeps the
        # result.
        together = whole(tensor)
        if first:
            # Tensors go to main memory one by one, since all of them together may not fit on the
            # device.
            whole_tensors[name] = together.cpu() if is_sharded(tensor) else together
    return whole_tensors


@torch.no_grad()
def finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all values in this process's shards are finite; True without tensors."""
    are_finite = [torch.isfinite(local(tensor)).all() for tensor in tensors.values()]
    # One transfer from the device answers for all tensors.
    return not are_finite or bool(torch.stack(are_finite).all())


def norms(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of each whole tensor, over all its shards, (len(tensors),)."""
    lengths = torch.stack(torch._foreach_norm([local(tensor.detach()) for tensor in tensors]))
    if any(map(is_sharded, tensors)):
        # Squares add up over shards; norms do not.
        squares = lengths.square()
        dist.all_reduce(squares)
        lengths = squares.sqrt()
    return lengths
