"""Giving a denoiser its kernels, and taking them away.

A module gets its kernel by a change of class, as torch's own parametrizations do it: it stays the
same object with the same parameters, so state dicts, optimizers, hooks and copies are unaffected.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from hdm.kernels import modules
from hdm.kernels.untouched import untouched
from hdm.models import layers, rope
from hdm.models.xut import XUT

NORMS = {"q_norm": layers.RMSNorm, "k_norm": layers.RMSNorm, "rope": rope.RotaryPositions}
PARTS: dict[type[nn.Module], dict[str, type[nn.Module]]] = {
    XUT: {"in_patch": layers.PatchEmbedding, "final_norm": layers.RMSNorm},
    layers.PatchEmbedding: {"proj": nn.Conv2d},
    layers.Block: {
        "attn_pre_norm": layers.ModulatedNorm,
        "attn": layers.SelfAttention,
        "xattn_pre_norm": layers.ModulatedNorm,
        "xattn": layers.CrossAttention,
        "mlp_pre_norm": layers.ModulatedNorm,
        "mlp": layers.FeedForward,
    },
    layers.ModulatedNorm: {"norm": layers.RMSNorm},
    layers.SelfAttention: {"qkv": nn.Linear, "out": nn.Linear, **NORMS},
    layers.CrossAttention: {"q": nn.Linear, "kv": nn.Linear, "out": nn.Linear, **NORMS},
    layers.FeedForward: {"w12": nn.Linear, "w3": nn.Linear},
}
"""The modules that kernels replace or read past, by the module that holds them, and their types."""

KERNELS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: modules.Linear,
    layers.RMSNorm: modules.RMSNorm,
    layers.PatchEmbedding: modules.PatchEmbedding,
    layers.ModulatedNorm: modules.ModulatedNorm,
    layers.SelfAttention: modules.SelfAttention,
    layers.CrossAttention: modules.CrossAttention,
    layers.FeedForward: modules.FeedForward,
    layers.Block: modules.Block,
}
PLAIN = {kernel: plain for plain, kernel in KERNELS.items()}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Installed:
    """What `install` did.

    Args:
        swapped: modules that have kernels now and had none before.
        skipped: names of modules that stay as they are: with a hook, a parametrization or a
            `forward` of their own, or of another type.
    """

    swapped: int
    skipped: tuple[str, ...]


def install(model: nn.Module) -> Installed:
    """Give a denoiser on the CPU its kernels; on another device nothing changes.

    Call it last: after adapters, compilation and recomputation. What is replaced or hooked
    afterwards takes effect all the same. A second call swaps what became plain since.

    Args:
        model: a XUT, or a module that holds one.
    """
    # On other devices, kernels would only call the plain forward.
    if any(not parameter.is_cpu for parameter in model.parameters()):
        return Installed(0, ())
    swapped, skipped = 0, []
    for path, owner in list(model.named_modules()):
        # Blocks lie in lists, where they have numbers and no names.
        if untouched(owner, layers.Block):
            owner.__class__ = modules.Block
            swapped += 1
        for name, kind in _parts(owner).items():
            module = getattr(owner, name, None)
            kernel = KERNELS.get(kind)
            # This variant of the model lacks the part, or an earlier call swapped it.
            if module is None or type(module) is kernel:
                continue
            if not untouched(module, kind):
                skipped.append(f"{path}.{name}".lstrip("."))
            # Parts without a kernel of their own are only read past, by their owner's kernel.
            elif kernel is not None:
                # The module stays the same object, so parameters, hooks and references to it stay
                # valid.
                module.__class__ = kernel
                swapped += 1
    if skipped:
        log.info(
            "%d modules have CPU kernels; %d are called as they are, since they were changed: %s",
            swapped,
            len(skipped),
            ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else ""),
        )
    return Installed(swapped, tuple(skipped))


def remove(model: nn.Module) -> int:
    """Make the modules of a model plain again; how many had kernels."""
    count = 0
    for module in model.modules():
        kind = type(module)
        if kind in PLAIN:
            module.__class__ = PLAIN[kind]
            count += 1
        elif parametrize.is_parametrized(module) and kind.__bases__[0] in PLAIN:
            # A parametrization made this class for this module alone.
            kind.__bases__ = (PLAIN[kind.__bases__[0]],)
            count += 1
    return count


def _parts(owner: nn.Module) -> dict[str, type[nn.Module]]:
    for kind, parts in PARTS.items():
        if isinstance(owner, kind):
            return parts
    return {}
