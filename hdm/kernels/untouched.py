"""Whether a kernel may read a module's parameters instead of calling the module."""

from __future__ import annotations

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module does what its class says and nothing else.

    False for a wrapper or an adapter in its place, a parametrization (both change the type), any
    hook, and a `forward` set on the instance.
    """
    if type(module) is not kind or "forward" in module.__dict__:
        return False
    return not any(module.__dict__[hooks] for hooks in HOOKS)
