"""How published files describe their model: by names in a configuration, or by the shapes of
tensors alone.

What the configuration leaves out is inferred from the tensors; what both state,
`weights.check_fit` compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from hdm.architecture import XUTConfig
from hdm.errors import InputError

SIZES = {
    "patch_size": "patch_size",
    "input_dim": "channels",
    "dim": "width",
    "ctx_dim": "text_width",
    "heads": "num_heads",
    "dim_head": "head_size",
    "mlp_dim": "mlp_width",
    "depth": "depth",
    "enc_blocks": "enc_blocks",
    "dec_blocks": "dec_blocks",
}
TREAD_SIZES = {"prev_trns_depth": "prev_blocks", "post_trns_depth": "post_blocks"}
ASPECT = "addon_info_embs_dim"
TREAD = "tread_config"
RATE = "dropout_ratio"


def from_published(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> XUTConfig:
    """The configuration in the published form.

    Args:
        values: any of the published keys, or none; others are passed over, and what is not said is
            inferred.
        tensors: the model's, without prefix.

    Raises:
        InputError: a value is no count, or the tensors are not a XUT's.
    """
    tread = values.get(TREAD) or {}
    if not isinstance(tread, Mapping):
        raise InputError(f"{TREAD} is {tread!r}, not a set of values")
    given = _renamed(values, SIZES) | _renamed(tread, TREAD_SIZES)
    wrong = {}
    for name, value in given.items():
        # isinstance would accept True as a number.
        if type(value) is not int or value < 0:
            wrong[name] = value
    if wrong:
        raise InputError(f"sizes have to be whole numbers; these are not: {wrong}")
    if ASPECT in values:
        # Published files say 1 or None.
        given["aspect_embedding"] = bool(values[ASPECT])
    # What the file says wins over its shapes; `check_fit` refuses it if the two contradict each
    # other.
    return XUTConfig.from_dict({**_inferred(tensors), **given})


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The values that are given for published names, by our names."""
    renamed = {}
    for theirs, ours in names.items():
        if values.get(theirs) is not None:
            renamed[ours] = values[theirs]
    return renamed


def to_published(config: XUTConfig, tread_rate: float | None = None) -> dict[str, Any] | None:
    """The published form of a configuration; None where it is a variant that this form has no words
    for.
    """
    values = config.to_dict()
    expressible = {*SIZES.values(), *TREAD_SIZES.values(), "aspect_embedding"}
    defaults = XUTConfig()
    for name, value in values.items():
        # The published form cannot express variants, and leaving one out would mean the default.
        if name not in expressible and value != getattr(defaults, name):
            return None
    tread: dict[str, Any] = {theirs: values[ours] for theirs, ours in TREAD_SIZES.items()}
    if tread_rate is not None:
        tread[RATE] = tread_rate
    sizes = {theirs: values[ours] for theirs, ours in SIZES.items()}
    return {**sizes, ASPECT: 1 if config.aspect_embedding else None, TREAD: tread}


def _inferred(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    # Any block serves, since all have the same sizes.
    rope = _first(shapes, "attn.rope.freqs", "(heads, head size / 4, 2)")
    patch = _first(shapes, "in_patch.proj.weight", "(width, channels, patch, patch)")
    text = _first(shapes, "ctx_proj.weight", "(width, text width)")
    mlp = _first(shapes, "mlp.w3.weight", "(width, feed-forward width)")
    if (len(rope), len(patch), len(text), len(mlp)) != (3, 4, 2, 2):
        raise InputError(
            f"these tensors are not a XUT's: rotary table {rope}, patch embedding {patch}, text"
            f" {text}, feed-forward {mlp}"
        )
    return {
        "width": patch[0],
        "channels": patch[1],
        "patch_size": patch[2],
        "text_width": text[1],
        "mlp_width": mlp[1],
        "num_heads": rope[0],
        "head_size": 4 * rope[1],
        "depth": _count(shapes, r"backbone\.enc_blocks\.(\d+)\."),
        "enc_blocks": _count(shapes, r"backbone\.enc_blocks\.\d+\.(\d+)\."),
        "dec_blocks": _count(shapes, r"backbone\.dec_blocks\.\d+\.(\d+)\."),
        "prev_blocks": _count(shapes, r"prev_tread_trns\.blocks\.(\d+)\."),
        "post_blocks": _count(shapes, r"post_tread_trns\.blocks\.(\d+)\."),
        "aspect_embedding": any(name.startswith("addon_info_embs_proj.") for name in shapes),
    }


def _first(shapes: Mapping[str, tuple[int, ...]], ending: str, meaning: str) -> tuple[int, ...]:
    for name in sorted(shapes):
        if name.endswith(ending):
            return shapes[name]
    raise InputError(f"these tensors are not a XUT's: none is called {ending}, {meaning}")


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that the pattern finds; 0 where it finds none."""
    count = 0
    for name in names:
        match = re.match(pattern, name)
        if match:
            count = max(count, int(match[1]) + 1)
    return count
