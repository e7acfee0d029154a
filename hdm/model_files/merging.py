"""Adapters merged into a model's file, tensor by tensor: what a tensor needs is in memory, no
more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hdm.files import written_aside
from hdm.model_files.adapter import Adapter, check_layers, merged
from hdm.model_files.tensors import open_tensors
from hdm.model_files.weights import PREFIX


@dataclass(frozen=True)
class Part:
    """An adapter to merge.

    Args:
        adapter: for the base.
        scale: 1: as trained.
    """

    adapter: Adapter
    scale: float


def merge_file(
    base: Path, parts: Sequence[Part], out: Path, told: Sequence[Mapping[str, Any]]
) -> int:
    """Write a safetensors file like a base's, with adapters merged into it in order: the same
    names and dtypes, and the bits of every tensor that no adapter changes.

    Args:
        base: a denoiser's safetensors file, with or without the published prefix.
        parts: computed in float32.
        out: the file; it is there whole or not at all.
        told: what its metadata says of what was merged, beside the base's own.

    Returns:
        How many tensors were changed.

    Raises:
        InputError: an adapter is for another base.
        DamagedError: the base is no whole safetensors file.
        DoesNotFitError: the disk is full.
    """
    with open_tensors(base) as file:
        shapes = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        own = {
            name.removeprefix(PREFIX): tuple(slice_.get_shape()) for name, slice_ in shapes.items()
        }
        for part in parts:
            check_layers(part.adapter, own)
        changed = _Changed(file, {name.removeprefix(PREFIX): name for name in shapes}, parts)
        metadata = {**(file.metadata() or {}), "merged": json.dumps(told)}
        header, size = _header(shapes, metadata)
        with written_aside(out, len(header) + size) as aside, aside.open("wb") as target:
            target.write(header)
            for name in _in_order(shapes):
                _write(target, changed.tensor(name))
        out.chmod(0o644)
        return changed.count


class _Changed:
    """A base's tensors with the adapters in them, asked for by their names in the file."""

    def __init__(self, file: Any, names: Mapping[str, str], parts: Sequence[Part]) -> None:
        self.file = file
        self.names = names
        self.parts = parts
        self.count = 0
        self._layer: tuple[str, dict[str, Tensor]] = ("", {})

    def tensor(self, name: str) -> Tensor:
        value: Tensor = self.file.get_tensor(name)
        layer, _, what = name.removeprefix(PREFIX).rpartition(".")
        adapted = [part for part in self.parts if layer in part.adapter.layers]
        if not adapted or what not in ("weight", "bias"):
            return value
        # Bias and weight of a layer are neighbours in the file: they are merged once.
        if self._layer[0] != layer:
            self._layer = (layer, self._merged(layer, adapted))
        found = self._layer[1][f"{layer}.{what}"].to(value.dtype)
        self.count += not torch.equal(found, value)
        return found

    def _merged(self, layer: str, adapted: Sequence[Part]) -> dict[str, Tensor]:
        tensors = {}
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in self.names:
                tensors[name] = self.file.get_tensor(self.names[name])
        for part in adapted:
            tensors = merged(part.adapter, layer, tensors, part.scale)
        return tensors


def _in_order(shapes: Mapping[str, Any]) -> list[str]:
    """Wider dtypes first, as the library writes them, so that every tensor is aligned."""
    return sorted(shapes, key=lambda name: (-_item_bytes(shapes[name].get_dtype()), name))


def _item_bytes(dtype: str) -> int:
    # Their names end in a number of bits, as F32 and BF16 do, but for booleans and 8-bit floats.
    bits = dtype.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return max(1, int(bits) // 8) if bits.isdigit() else 1


def _header(shapes: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The beginning of the file, up to its tensors, and how many bytes these take."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name in _in_order(shapes):
        shape = shapes[name].get_shape()
        dtype = shapes[name].get_dtype()
        count = 1
        for side in shape:
            count *= side
        end = start + count * _item_bytes(dtype)
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, start


def _write(target: BinaryIO, tensor: Tensor) -> None:
    # NumPy has no bfloat16, bytes it has.
    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    target.write(plain.numpy().data)
