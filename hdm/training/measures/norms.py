"""Norms of gradients and weights, of the whole model and by its parts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hdm import sharding


def tensor_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The 2-norm of each tensor, by name, as scalars on its device. If tensors are sharded, all
    processes have to call this.
    """
    return dict(zip(tensors, sharding.norms(list(tensors.values())).unbind(), strict=True))


def gradient_norms(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """`tensor_norms` of the gradients of parameters, of those that have one."""
    gradients = {name: value.grad for name, value in parameters.items()}
    return tensor_norms({name: value for name, value in gradients.items() if value is not None})


def total_norm(norms: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, from their norms."""
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return total


def by_part(norms: Mapping[str, Tensor]) -> dict[str, float | None]:
    """The norm of each part of the model (the first word of its parameters' names), sorted by
    name; None if it is not finite.

    Waits for the device.
    """
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for name, norm in norms.items():
        parts[name.partition(".")[0]].append(norm)
    # One transfer from the device serves all parts.
    values = torch.stack([total_norm(part) for part in parts.values()]).tolist()
    found = {}
    for part, value in sorted(zip(parts, values, strict=True)):
        found[part] = value if math.isfinite(value) else None  # JSON has no NaN
    return found
