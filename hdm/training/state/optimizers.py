"""Optimizers and their rates: who updates which tensor, and how fast at what time."""

from __future__ import annotations

import importlib.util
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from hdm.errors import ConfigError
from hdm.muon import Muon
from hdm.sharding import like_layout, local
from hdm.training.settings import Optimizer

# Each step sets torch's `lr` to a share of this.
BASE_RATE = "base_rate"
# Jordan's value (see hdm/muon.py).
MUON_MOMENTUM = 0.95
# Matrices inside the blocks; embeddings, shared modulation and the output layer stay with AdamW.
_BLOCK = re.compile(r"(^|\.)(blocks|enc_blocks|dec_blocks)\.\d+\.")


def fan_in(tensor: Tensor) -> int:
    """What a rate is divided by: inputs of a matrix, inputs × kernel area of a convolution, length
    of a vector (recipe of HDM).
    """
    return max(1, math.prod(tensor.shape[1:])) if tensor.ndim > 1 else max(1, tensor.numel())


def is_muon(name: str, tensor: Tensor) -> bool:
    """Whether Muon takes a tensor: a weight matrix of a block."""
    return (
        tensor.ndim == 2
        and _BLOCK.search(name) is not None
        # A block's own modulation is treated like the shared one.
        and "adaln" not in name
        and name.endswith(".weight")
    )


def decays(name: str, tensor: Tensor) -> bool:
    """Whether weight decay pulls a tensor: weights of linear layers and convolutions, not biases,
    norms or frequencies.
    """
    return tensor.ndim in (2, 4) and name.endswith(".weight")


class Optimizers:
    """One optimizer or two over all parameters of a model.

    Args:
        model: whose parameters each get into exactly one group.
        settings: kind, rates, decay.
        for_muon: whether Muon takes a tensor of that name, if `settings` asks for Muon.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Optimizer,
        for_muon: Callable[[str, Tensor], bool] = is_muon,
    ) -> None:
        self.settings = settings
        self._names: dict[int, str] = {}
        muon: dict[str, Tensor] = {}
        adamw: dict[str, Tensor] = {}
        for name, value in model.named_parameters():
            if not value.requires_grad:
                continue
            # Names stay valid if parameters are grouped differently; numbers would not.
            self._names[id(value)] = name
            takes_muon = settings.kind == "muon" and for_muon(name, value)
            (muon if takes_muon else adamw)[name] = value
        self.all: dict[str, torch.optim.Optimizer] = {}
        if adamw:
            self.all["adamw"] = _adamw(_groups(adamw, settings), settings)
        if muon:
            rates = {"lr": settings.muon_learning_rate, BASE_RATE: settings.muon_learning_rate}
            self.all["muon"] = Muon(
                [{"params": list(muon.values()), **rates}],
                momentum=MUON_MOMENTUM,
                weight_decay=settings.weight_decay,
            )

    def step(self, factor: float) -> None:
        """Update all parameters that have a gradient, at `factor` times the full rates."""
        for optimizer in self.all.values():
            for group in optimizer.param_groups:
                group["lr"] = group[BASE_RATE] * factor
            optimizer.step()

    def rates(self, factor: float) -> dict[str, float]:
        """The rates that are shown: AdamW's (before any division by fan-in), and Muon's."""
        shown = {"learning_rate": self.settings.learning_rate * factor}
        if "muon" in self.all:
            shown["muon_learning_rate"] = self.settings.muon_learning_rate * factor
        return shown

    @property
    def num_bytes(self) -> int:
        """What the state takes on this device."""
        return sum(local(value).nbytes for value in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The state as `<parameter>:<what>` → tensor."""
        return state_tensors(self.all.values(), self._names)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring back a state from `tensors`; rates are set at each step."""
        load_state(self.all.values(), self._names, tensors)


def state_tensors(
    optimizers: Iterable[torch.optim.Optimizer], names: Mapping[int, str]
) -> dict[str, Tensor]:
    """The state of some optimizers as `<parameter>:<what>` → tensor; `names` has the parameters'
    names by their `id`.
    """
    # By name, not by position: a checkpoint then fits however the parameters are grouped.
    tensors = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for what, value in state.items():
                tensors[f"{names[id(parameter)]}:{what}"] = _apart(what, value)
    return tensors


def load_state(
    optimizers: Iterable[torch.optim.Optimizer],
    names: Mapping[int, str],
    tensors: Mapping[str, Tensor],
) -> None:
    """Bring back what `state_tensors` gave; rates are not part of it."""
    states: dict[str, dict[str, Tensor | int]] = defaultdict(dict)
    for key, value in tensors.items():
        name, _, what = key.rpartition(":")
        # bitsandbytes counts its steps in plain integers, torch in tensors of floats.
        states[name][what] = (
            int(value) if value.ndim == 0 and not value.is_floating_point() else value
        )
    for optimizer in optimizers:
        numbered = optimizer.state_dict()
        # torch numbers parameters consecutively over the groups.
        ordered: list[Tensor] = []
        for group in optimizer.param_groups:
            ordered += group["params"]
        by_number = {}
        for number, value in enumerate(ordered):
            state = states.get(names[id(value)])
            if state:
                by_number[number] = _like_layouts(state, value)
        optimizer.load_state_dict({**numbered, "state": by_number})


def _like_layouts(state: Mapping[str, Tensor | int], parameter: Tensor) -> dict[str, Tensor | int]:
    """Tensors of a parameter's shape in its own memory format: fused updates walk through memory
    side by side.
    """
    found = dict(state)
    for what, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # In the state's own precision, which may be 8 bits.
            found[what] = like_layout(value, parameter)
    return found


def _apart(what: str, value: Tensor | int) -> Tensor:
    """A tensor that shares no memory with another, as safetensors requires: with 8 bits, all
    parameters share the table of values.
    """
    if not isinstance(value, Tensor):
        return torch.tensor(value)
    return value.clone() if what.startswith("qmap") else value


def check_packages(settings: Optimizer, where: str) -> None:
    """Raise a ConfigError if an optimizer needs a package that is not installed; `where` names the
    setting.
    """
    if settings.state_bits == 8 and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "AdamW with 8 bits needs the package bitsandbytes, which is not installed",
            where=where,
            do="pip install bitsandbytes, or set state_bits: 32",
        )


def _adamw(groups: list[dict[str, object]], settings: Optimizer) -> torch.optim.Optimizer:
    if settings.state_bits == 32:
        # Fused: one pass over each tensor, on CPU and CUDA.
        return torch.optim.AdamW(groups, betas=settings.betas, fused=True)
    check_packages(settings, "optimizer.state_bits")
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=settings.betas)
    return optimizer


def _groups(parameters: Mapping[str, Tensor], settings: Optimizer) -> list[dict[str, object]]:
    """AdamW's groups: parameters of one rate and one decay together."""
    groups: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for name, value in parameters.items():
        # Dividing by the fan-in is like muP, and part of the published recipe.
        rate = settings.learning_rate / (fan_in(value) if settings.per_fan_in else 1)
        groups[rate, settings.weight_decay if decays(name, value) else 0.0].append(value)
    found: list[dict[str, object]] = []
    # Sorting gives every process the same order of groups.
    for rate, decay in sorted(groups):
        members = groups[rate, decay]
        found.append({"params": members, "lr": rate, BASE_RATE: rate, "weight_decay": decay})
    return found


def rate_factor(settings: Optimizer, num_images_seen: int, num_images: int) -> float:
    """The schedule: a step's rate as a share of the full rate.

    Args:
        settings: its schedule, warm-up and end.
        num_images_seen: images seen when the step is done, so that the first step of a warm-up
            moves and the last one ends at `final_rate`.
        num_images: images seen at the end of the phase.

    Returns:
        In (0, 1]. Linear warm-up over `warmup_images`, then constant; half a cosine down to
        `final_rate`; or, for wsd, constant and a linear fall to `final_rate` over the last fifth of
        the phase.
    """
    warm = min(1.0, num_images_seen / settings.warmup_images) if settings.warmup_images else 1.0
    return warm * _after_warmup(settings, num_images_seen, num_images)


def _after_warmup(settings: Optimizer, num_images_seen: int, num_images: int) -> float:
    end = settings.final_rate
    if settings.schedule == "cosine":
        span = max(1, num_images - settings.warmup_images)
        done = min(1.0, max(0.0, (num_images_seen - settings.warmup_images) / span))
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "wsd":
        return end + (1 - end) * min(1.0, (num_images - num_images_seen) / (0.2 * num_images))
    return 1.0
