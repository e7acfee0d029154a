"""Denoiser weights as safetensors files that say themselves what model they belong to.

Tensors are named as in the published files, prefix `unet.model.` and all; the metadata's `config` is JSON: ours
(`XUTConfig.to_dict`) or the published form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hdm.architecture import XUTConfig
from hdm.errors import ConfigError, DamagedError, InputError
from hdm.models.xut import XUT

PREFIX = "unet.model."
PUBLISHED_NAMES = {
    "patch_size": "patch_size", "input_dim": "channels", "dim": "width", "ctx_dim": "text_width", "heads": "num_heads",
    "dim_head": "head_size", "mlp_dim": "mlp_width", "depth": "depth", "enc_blocks": "enc_blocks", "dec_blocks": "dec_blocks",
}  # fmt: skip


def save_xut(path: Path, model: XUT | Mapping[str, Tensor], config: XUTConfig | None = None) -> None:
    """Write weights and their configuration. The same weights make the same bytes.

    Args:
        path: the file to write, in place: give a temporary path where a half-written file must not be seen.
        model: the model, or its state (an average of weights, say), named as `XUT.state_dict()` is.
        config: the configuration of a state; None: the model's own.
    """
    if isinstance(model, XUT):
        config = config or model.config
        model = model.state_dict()
    if config is None:
        raise ConfigError("a state without its configuration cannot be saved", where=path)
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}
    # One metadata key alone: safetensors writes several in an order that changes from run to run.
    save_file(tensors, path, metadata={"config": json.dumps(config.to_dict(), sort_keys=True)})


def load_xut(path: Path, device: torch.device | str = "cpu") -> XUT:
    """Read a model in float32, from our file or a published one.

    Other tensors in the file (`te.*`, `vae.*`) are passed over.

    Raises:
        InputError: no such file, not safetensors (a pickle is never opened), or tensors that do not fit the configuration.
        DamagedError: the file is cut off or garbled.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such weights file", where=path)
    if path.suffix != ".safetensors":
        raise InputError("weights are read from .safetensors files alone: others can run code when opened", where=path)
    try:
        with safe_open(path, "pt") as file:
            config = read_config(file.metadata() or {}, path)
            names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118  (not a mapping)
            state = {name.removeprefix(PREFIX): file.get_tensor(name).float() for name in names}
    except SafetensorError as error:
        raise DamagedError(f"not a whole safetensors file: {error}", where=path, do="write or fetch it again") from error
    with torch.device("meta"):
        model = XUT(config)
    _check_fit(state, model.state_dict(), path)
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.to(device)


def read_config(metadata: Mapping[str, str], path: Path) -> XUTConfig:
    """The configuration in a weights file's metadata, in our form or the published one."""
    if "config" not in metadata:
        raise InputError("the weights file does not say its configuration", where=path, do="its metadata needs the key `config`")
    values: dict[str, Any] = json.loads(metadata["config"])
    return from_published(values) if "dim" in values else XUTConfig.from_dict(values)


def from_published(values: Mapping[str, Any]) -> XUTConfig:
    """Our configuration of the model that the published form describes.

    The TREAD rate (`dropout_ratio`) is how a model is trained, not what it is: it is passed over.
    """
    sizes = {ours: values[theirs] for theirs, ours in PUBLISHED_NAMES.items() if theirs in values}
    tread = values.get("tread_config") or {}
    return XUTConfig(
        **sizes,
        prev_blocks=tread.get("prev_trns_depth", 1),
        post_blocks=tread.get("post_trns_depth", 3),
        aspect_embedding=bool(values.get("addon_info_embs_dim")),
    )


def _check_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        have, want = (tuple(state[name].shape) if name in state else "absent" for state in (found, wanted))
        if have != want:
            raise InputError(f"weights do not fit their configuration: {PREFIX}{name} is {have}, the model's {want}", where=path)
