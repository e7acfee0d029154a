"""Adapters on disk, in peft's form, and models with adapters merged into them.

    adapter_model.safetensors    base_model.model.<layer>.lora_A.weight …; its metadata's `adapter`
                                 is JSON: peft's configuration, and the base's digest
    adapter_config.json          the same configuration, where peft looks for it

One of the two is enough beside the tensors, so the file may leave its folder.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hdm.errors import InputError
from hdm.files import write_json, written_aside
from hdm.model_files.file_names import ADAPTER, ADAPTER_CONFIG
from hdm.model_files.stored import StoredModel
from hdm.model_files.tensors import open_tensors
from hdm.models.adapters import NAME, adapter_tensors, check_package, read_config
from hdm.models.components import read_json

PREFIX = "base_model.model."
METADATA = "adapter"
_MARKS = {"LORA": ".lora_", "LOHA": ".hada_", "LOKR": ".lokr_", "IA3": ".ia3_"}
"""Method → what stands between a layer's name and that of its adapter's tensor."""
_WRITTEN_BY = "name a file that was written by this package or by peft"
_PATTERN = r"(.*\.)?({})$"
"""How peft reads a pattern of layers."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies on disk.

    Args:
        path: where it was read from.
        config: peft's configuration.
        tensors: named as in peft's files, without their prefix.
        base: digest of the model that it was trained on; None: not known.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    base: str | None = None

    @cached_property
    def layers(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each layer that has an adapter, under their names.

        Raises:
            InputError: a tensor is none of the method's.
        """
        mark = _MARKS[self.config["peft_type"]]
        layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in self.tensors.items():
            layer, found, _ = name.rpartition(mark)
            if not found:
                raise InputError(
                    f"{name} is no tensor of an adapter of kind {self.config['peft_type']}",
                    where=self.path,
                    do=_WRITTEN_BY,
                )
            layers[layer][name] = value
        return dict(layers)


def read_adapter(path: Path) -> Adapter:
    """An adapter that a training phase or peft wrote.

    Args:
        path: its folder, or the safetensors file.

    Raises:
        InputError: there is none, or it is of a kind that is not known.
        DamagedError: a file is cut off or garbled.
    """
    check_package(str(path))
    file = path / ADAPTER if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise InputError(f"this folder has no {ADAPTER}", where=path, do=_WRITTEN_BY)
    with open_tensors(file) as opened:
        metadata = opened.metadata() or {}
        # `opened` is no mapping: it cannot be iterated over.
        tensors = {
            name.removeprefix(PREFIX): opened.get_tensor(name)
            for name in opened.keys()  # noqa: SIM118
        }
    said = _said(metadata, file)
    adapter = Adapter(path, said.get("config", {}), tensors, said.get("base"))
    # It may be anything that JSON has, lists included.
    if str(adapter.config.get("peft_type")) not in _MARKS or not tensors:
        raise InputError(
            f"an adapter of kind {adapter.config.get('peft_type')}, which is not known",
            where=path,
            do=f"there are {', '.join(_MARKS)}",
        )
    return adapter


def _said(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    """Configuration and base, from the file itself or from peft's file beside it."""
    if METADATA not in metadata:
        return {"config": read_json(file.with_name(ADAPTER_CONFIG), _WRITTEN_BY)}
    try:
        said = json.loads(metadata[METADATA])
    except ValueError as error:
        raise InputError(
            f"the metadata's `{METADATA}`: {error}", where=file, do=_WRITTEN_BY
        ) from error
    if not isinstance(said, dict) or not isinstance(said.get("config"), dict):
        raise InputError(f"the metadata's `{METADATA}` has no config", where=file, do=_WRITTEN_BY)
    return said


def write_adapter(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], base: str
) -> None:
    """Write an adapter's two files, the same bytes for the same tensors.

    Args:
        folder: where they go.
        config: peft's configuration, as `adapters.peft_config` has it.
        tensors: as `adapters.adapter_tensors` has them.
        base: digest of the model that it was trained on.
    """
    said = json.dumps({"base": base, "config": config}, sort_keys=True)
    whole = {PREFIX + name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with written_aside(folder / ADAPTER) as aside:
        # One metadata key alone: safetensors writes several in an order that changes.
        save_file(whole, aside, metadata={METADATA: said})
        aside.chmod(0o644)  # the library makes it readable by its owner alone
    write_json(folder / ADAPTER_CONFIG, config)


def adapted(model: StoredModel, adapter: Adapter, scale: float = 1.0) -> StoredModel:
    """A model with an adapter merged into it, in float32 where it is adapted.

    Args:
        model: the base.
        adapter: for a model with such layers.
        scale: 1: the adapter as trained; 0: none of it. Weights W become W + scale · (W' - W),
            where W' are the adapted ones.

    Raises:
        InputError: the adapter is for another base; the first difference is named.
    """
    base = model.weights.tensors
    check_layers(adapter, {name: tuple(value.shape) for name, value in base.items()})
    tensors = dict(base)
    for layer in adapter.layers:
        tensors.update(merged(adapter, layer, base, scale))
    return replace(model, weights=replace(model.weights, tensors=tensors))


def check_layers(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare an adapter with a base's shapes, by its tensors' names.

    Raises:
        InputError: the base lacks a layer of the adapter's, or has it in another size; the
            adapter's configuration cannot be read.
    """
    for layer, tensors in adapter.layers.items():
        shape = shapes.get(f"{layer}.weight", ())
        if len(shape) not in (2, 4):
            near = difflib.get_close_matches(f"{layer}.weight", shapes, n=1)
            nearest = f"; the nearest is {near[0].removesuffix('.weight')}" if near else ""
            raise _other_base(adapter, f"the model has no layer {layer}{nearest}")
        wanted = _shapes(adapter, layer, shape)
        have = {name: tuple(value.shape) for name, value in tensors.items()}
        for name in sorted(wanted.keys() | have.keys()):
            if have.get(name) != wanted.get(name):
                raise _other_base(
                    adapter,
                    f"{name} is {have.get(name, 'absent')}, and beside {layer} of"
                    f" {' × '.join(map(str, shape))} it is {wanted.get(name, 'absent')}",
                )


def merged(
    adapter: Adapter, layer: str, base: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """The tensors of a base's layer with an adapter in them, float32, by name.

    Args:
        adapter: fits the base (`check_layers`).
        layer: one of the adapter's.
        base: has the layer's tensors.
        scale: as for `adapted`.

    Raises:
        InputError: the weights would not be finite.
    """
    from peft import set_peft_model_state_dict

    names = [name for name in (f"{layer}.weight", f"{layer}.bias") if name in base]
    before = {name: base[name].float() for name in names}
    holder = _adapted_layer(adapter, layer, before)
    own = {name: value.float() for name, value in adapter.layers[layer].items()}
    set_peft_model_state_dict(holder, own, adapter_name=NAME, low_cpu_mem_usage=True)
    module: Any = holder.get_submodule(layer)
    with torch.no_grad():
        module.merge()
    after = module.get_base_layer()
    found = {}
    for name in names:
        value = getattr(after, name.rpartition(".")[2]).detach()
        found[name] = torch.lerp(before[name], value, scale)
        if not found[name].isfinite().all():
            raise InputError(
                f"merged at scale {scale:g} it makes {name} infinite or not a number",
                where=adapter.path,
                do="choose a smaller scale; if that is no help, its weights are damaged",
            )
    return found


def _shapes(adapter: Adapter, layer: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes that an adapter's tensors have beside a layer whose weight has this one."""
    weight = torch.empty(shape, device="meta")
    holder = _adapted_layer(adapter, layer, {f"{layer}.weight": weight})
    return {name: tuple(value.shape) for name, value in adapter_tensors(holder).items()}


def _adapted_layer(adapter: Adapter, layer: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module that holds nothing but one layer of a base, with an adapter of no values yet."""
    from peft import inject_adapter_in_model

    holder = nn.Module()
    parent = holder
    *parents, last = layer.split(".")
    # Under its own name, by which the configuration tells its rank.
    for part in parents:
        parent.add_module(part, nn.Module())
        parent = getattr(parent, part)
    parent.add_module(last, _plain_layer(layer, tensors))
    try:
        # Without memory and without draws from torch's generator.
        config = _config_of_layer(adapter, layer)
        return inject_adapter_in_model(config, holder, NAME, low_cpu_mem_usage=True)
    # What people wrote there meets peft's own checks, or none before it is computed with.
    except (ValueError, TypeError, AttributeError, RuntimeError, re.error) as error:
        raise InputError(
            f"the adapter's configuration cannot be used for {layer}: {error}",
            where=adapter.path,
            do=_WRITTEN_BY,
        ) from error


def _config_of_layer(adapter: Adapter, layer: str) -> Any:
    """peft's configuration of an adapter, for one layer alone."""
    config: Any = read_config(adapter.config)
    config.target_modules = {layer}
    # peft warns of patterns of other layers.
    for patterns in ("rank_pattern", "alpha_pattern"):
        given = getattr(config, patterns, None) or {}
        own = {key: value for key, value in given.items() if re.match(_PATTERN.format(key), layer)}
        setattr(config, patterns, own)
    if adapter.config["peft_type"] == "IA3":
        inner = config.feedforward_modules or ()
        config.feedforward_modules = {layer} if _is_named(layer, inner) else set()
    return config


def _plain_layer(layer: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The linear layer or convolution that has these tensors, copied."""
    weight = tensors[f"{layer}.weight"]
    bias = tensors.get(f"{layer}.bias")
    outputs, inputs, *kernel = weight.shape
    with torch.device("meta"):
        plain: nn.Module = (
            nn.Conv2d(inputs, outputs, (kernel[0], kernel[1]), bias=bias is not None)
            if kernel
            else nn.Linear(inputs, outputs, bias=bias is not None)
        )
    # peft merges in place.
    own = {"weight": weight.clone(), **({} if bias is None else {"bias": bias.clone()})}
    plain.load_state_dict(own, assign=True)
    return plain.requires_grad_(False)


def _is_named(layer: str, names: Iterable[str]) -> bool:
    return any(layer == name or layer.endswith(f".{name}") for name in names)


def _other_base(adapter: Adapter, what: str) -> InputError:
    return InputError(
        f"the adapter is for another base: {what}",
        where=adapter.path,
        do="name the model that it was trained on, or one of the same sizes",
    )
