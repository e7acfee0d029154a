"""Adapters beside a denoiser's layers, by the library peft: where they go, and how they are
attached.

    W x  becomes  W x + alpha / rank · B A x

is LoRA's; the other methods of `AdapterSettings` differ in what stands beside W.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from hdm.architecture import XUTConfig
from hdm.errors import ConfigError
from hdm.models.building import build_denoiser
from hdm.models.denoiser import Denoiser
from hdm.models.settings import AdapterSettings

if TYPE_CHECKING:
    from peft import PeftConfig

NAME = "default"
"""What peft calls the adapter within the model."""
_FIELDS = frozenset(
    {
        *("peft_type", "target_modules", "feedforward_modules", "rank_pattern", "alpha_pattern"),
        *("r", "lora_alpha", "alpha", "use_rslora", "use_dora", "lora_dropout", "rank_dropout"),
        *("decompose_both", "decompose_factor", "use_effective_conv2d", "fan_in_fan_out"),
    }
)
"""What of peft's configurations says how weights are adapted; the rest is about how adapters
begin, or about models of other libraries.
"""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Target:
    """A layer that gets an adapter.

    Args:
        name: as `named_modules` has it.
        rank: of its matrices.
        alpha: what they give is scaled by alpha / rank, or alpha / √rank with rsLoRA.
        wanted_rank: what the settings ask for; `rank` is the layer's smaller side at most.
    """

    name: str
    rank: int
    alpha: float
    wanted_rank: int


def check_package(where: str) -> None:
    """Raise a ConfigError if peft is not installed; `where` names what needs it."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            "adapters need the package peft, which is not installed",
            where=where,
            do="pip install 'hdm-pipeline[finetune]'",
        )


def targets(model: Denoiser, settings: AdapterSettings, where: str) -> list[Target]:
    """The layers that get an adapter, in the model's order.

    Args:
        model: on any device, meta included, without adapters.
        settings: name them.
        where: of the settings, for errors.

    Raises:
        ConfigError: a pattern fits no linear layer and no convolution; the nearest are named.
    """
    layers = _layers(model)
    chosen = _in_blocks(model, layers)
    if settings.targets is not None:
        _check_patterns(settings.targets, layers, f"{where}.targets")
        chosen = [name for name in layers if _first(settings.targets, name) is not None]
    if not chosen:
        raise ConfigError(
            "the adapter has no layer: the model's blocks have no linear layers",
            where=f"{where}.targets",
            do=f"name some of {', '.join(list(layers)[:3])}",
        )
    for field in ("rank_pattern", "alpha_pattern"):
        _check_patterns(getattr(settings, field), chosen, f"{where}.{field}")
    return [_target(name, layers[name], settings) for name in chosen]


def targets_of(config: XUTConfig, settings: AdapterSettings, where: str) -> list[Target]:
    """`targets` in the model of a configuration, which needs no memory."""
    with torch.device("meta"):
        model = build_denoiser(config)
    return targets(model, settings, where)


def _layers(model: nn.Module) -> dict[str, Tensor]:
    """The weights of what may have an adapter, by the layers' names."""
    kinds = (nn.Linear, nn.Conv2d)
    named = model.named_modules()
    return {name: module.weight for name, module in named if isinstance(module, kinds)}


def _in_blocks(model: Denoiser, layers: Mapping[str, Tensor]) -> list[str]:
    inside = set[int]()
    for block in model.blocks():
        inside.update(id(value) for value in block.parameters())
    return [name for name, weight in layers.items() if id(weight) in inside and weight.ndim == 2]


def _target(name: str, weight: Tensor, settings: AdapterSettings) -> Target:
    wanted = _of_pattern(settings.rank_pattern, name, settings.rank)
    # More columns than the layer's smaller side can say nothing more.
    rank = min(wanted, len(weight), weight[0].numel())
    alpha = _of_pattern(settings.alpha_pattern, name, settings.alpha)
    unscaled = math.sqrt(wanted) if settings.rslora else wanted
    scale = 1.0 if alpha is None else alpha / unscaled
    # A lowered rank leaves the scale as it is.
    return Target(name, rank, scale * (math.sqrt(rank) if settings.rslora else rank), wanted)


def _of_pattern(patterns: Mapping[str, Value], name: str, default: Value) -> Value:
    first = _first(patterns, name)
    return default if first is None else patterns[first]


def _first(patterns: Iterable[str], name: str) -> str | None:
    """The first pattern that fits a layer's name, or the end of it after a dot."""
    fitting = (it for it in patterns if fnmatchcase(name, it) or fnmatchcase(name, f"*.{it}"))
    return next(fitting, None)


def _check_patterns(patterns: Iterable[str], names: Iterable[str], where: str) -> None:
    names = list(names)
    for pattern in patterns:
        if all(_first([pattern], name) is None for name in names):
            raise ConfigError(
                f"{pattern!r} fits no layer",
                where=where,
                do=f"the nearest: {', '.join(_nearest(pattern, names))}",
            )


def _nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """The names, or ends of names, that a pattern comes nearest to."""
    ends = set[str]()
    for name in names:
        parts = name.split(".")
        ends.update(".".join(parts[start:]) for start in range(len(parts)))
    # Ends that are numbers name a place in a list, which says nothing by itself.
    said = sorted(end for end in ends if not end.replace(".", "").isdigit())
    return difflib.get_close_matches(pattern.strip("*."), said, n=3, cutoff=0.3) or said[:3]


def peft_config(settings: AdapterSettings, chosen: Iterable[Target]) -> dict[str, Any]:
    """How peft describes the adapter, as plain values (its adapter_config.json)."""
    chosen = list(chosen)
    names = [target.name for target in chosen]
    if settings.method == "ia3":
        # The last layer of a feed-forward has the factors at its input, as published.
        inner = [name for name in names if name.endswith(".w3")]
        return {"peft_type": "IA3", "target_modules": names, "feedforward_modules": inner}
    ranks = _unlike(settings.rank, {target.name: target.rank for target in chosen})
    alpha = settings.rank if settings.alpha is None else settings.alpha
    alphas = _unlike(alpha, {target.name: target.alpha for target in chosen})
    of_all = {
        "target_modules": names,
        "r": settings.rank,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    if settings.method in ("lora", "dora"):
        return {
            "peft_type": "LORA",
            **of_all,
            "lora_alpha": alpha,
            "lora_dropout": settings.dropout,
            "use_rslora": settings.rslora,
            "use_dora": settings.method == "dora",
        }
    kind = {"loha": "LOHA", "lokr": "LOKR"}[settings.method]
    return {"peft_type": kind, **of_all, "alpha": alpha, "rank_dropout": settings.dropout}


def _unlike(default: float, values: Mapping[str, float]) -> dict[str, float]:
    """Those that differ from the default. peft's keys are regular expressions."""
    escaped = {name.replace(".", r"\."): value for name, value in values.items()}
    return {name: value for name, value in escaped.items() if value != default}


def read_config(values: Mapping[str, Any]) -> PeftConfig:
    """peft's configuration of plain values; what does not say how weights are adapted is passed
    over.
    """
    from peft import PeftType, get_peft_config

    known = {name: value for name, value in values.items() if name in _FIELDS}
    config: PeftConfig = get_peft_config({**known, "peft_type": PeftType(known["peft_type"])})
    return config


def attach(model: Denoiser, settings: AdapterSettings, where: str) -> list[Target]:
    """Put a new adapter beside the model's layers, and freeze everything else of the model.

    New weights come from torch's generator; they change nothing of what the model gives.

    Args:
        model: gets it; call it before kernels of the CPU are installed.
        settings: method, ranks and layers.
        where: of the settings, for errors.

    Returns:
        The layers that have one now.

    Raises:
        ConfigError: as `targets`.
    """
    from peft import inject_adapter_in_model

    chosen = targets(model, settings, where)
    inject_adapter_in_model(read_config(peft_config(settings, chosen)), model, NAME)
    return chosen


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights in an adapted model, named as peft's files name them."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=NAME)
    return tensors


def load_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load an adapter's weights, named as `adapter_tensors` has them, into an adapted model."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, dict(tensors), adapter_name=NAME)
