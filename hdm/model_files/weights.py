"""Denoiser weights as safetensors files that record their model's configuration.

Tensors are named as in the published files, prefix `unet.model.` and all, and keep their dtype and
bits. The metadata's `config` is JSON: the published form where it has words for the model, else
ours (`XUTConfig.to_dict`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hdm.architecture import XUTConfig
from hdm.errors import InputError
from hdm.files import written_aside
from hdm.model_files.published import RATE, TREAD, from_published, to_published
from hdm.model_files.tensors import open_tensors
from hdm.models.building import build_denoiser
from hdm.models.denoiser import Denoiser
from hdm.models.tread import num_kept

PREFIX = "unet.model."


@dataclass(frozen=True)
class Weights:
    """A denoiser's tensors as they lie in a file, on the CPU.

    Attributes:
        config: what model they are of; they fit it.
        tensors: without prefix, in the file's dtypes.
        said: the configuration as the file words it; empty where it has none.
        passed_over: number of other tensors in the file, by the first part of their names.
    """

    config: XUTConfig
    tensors: Mapping[str, Tensor]
    said: Mapping[str, Any] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def model(self) -> Denoiser:
        """The model in float32."""
        # The model has no memory of its own, and takes over the file's tensors: weights are in
        # memory once.
        model = _empty(self.config)
        model.load_state_dict(
            {name: tensor.float() for name, tensor in self.tensors.items()}, assign=True
        )
        return model.requires_grad_(True)

    def describe(self) -> str:
        """Sizes, parameters and dtypes in words."""
        config = self.config
        dtypes = Counter(
            str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values()
        )
        parameters = sum(parameter.numel() for parameter in _empty(config).parameters())
        blocks = f"{config.depth} × ({config.enc_blocks} encoder, {config.dec_blocks} decoder)"
        tensors = ", ".join(f"{count} tensors {name}" for name, count in sorted(dtypes.items()))
        embedding = "with" if config.aspect_embedding else "without"
        lines = (
            f"{parameters:,} parameters in {tensors}",
            f"width {config.width} = {config.num_heads} × {config.head_size}, feed-forward"
            f" {config.mlp_width}, text {config.text_width}",
            f"blocks: {config.prev_blocks}, then {blocks}, then {config.post_blocks}",
            f"{config.channels} channels, patch {config.patch_size}, {embedding} aspect embedding",
        )
        return "\n".join(lines)


def read_weights(path: Path, *, inferring: bool = False) -> Weights:
    """The weights in a safetensors file, ours or a published one.

    Args:
        path: the file.
        inferring: if the file does not record its configuration, infer it from the shapes, as that
            of a published model.

    Raises:
        InputError: no such file, not safetensors (a pickle is never opened), no configuration, or
            tensors that do not fit it.
        DamagedError: the file is cut off or garbled.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            "no such weights file or folder",
            where=path,
            do="name a folder of training, a diffusers folder or a .safetensors file",
        )
    # The check comes before the file is opened, since opening a pickle can run code.
    if path.suffix != ".safetensors":
        raise InputError(
            "weights are read from .safetensors files alone: others can run code when opened",
            where=path,
            do="`hdm weights import` reads a Lightning checkpoint without running any",
        )
    with open_tensors(path) as file:
        metadata = file.metadata() or {}
        # `file` is no mapping: it cannot be iterated over.
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    said = _said(metadata, path)
    if not said and not inferring:
        raise InputError(
            "the weights file does not say its configuration",
            where=path,
            do=(
                "its metadata needs the key `config`; `hdm weights import` tells a published model"
                " from its shapes"
            ),
        )
    return of_tensors(tensors, said, path)


def of_tensors(tensors: Mapping[str, Tensor], said: Mapping[str, Any], path: Path) -> Weights:
    """The denoiser among a file's tensors.

    Args:
        tensors: all of them, named as in the file.
        said: the configuration in either form; empty: inferred from the shapes, as a published
            model's.
        path: for errors.

    Raises:
        InputError: there is no denoiser, or it does not fit what is said of it.
    """
    own = {}
    others: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if name.startswith(PREFIX):
            own[name.removeprefix(PREFIX)] = tensor
        else:
            # Published files also hold te.*, vae.* and the like.
            others[name.partition(".")[0]] += 1
    if not own:
        raise InputError(
            f"no tensor's name begins with {PREFIX}",
            where=path,
            do="name a file of denoiser weights",
        )
    try:
        # Only our own form has `width`; the published one says `dim`.
        config = XUTConfig.from_dict(dict(said)) if "width" in said else from_published(said, own)
    except InputError as error:
        raise type(error)(error.what, where=path, do=error.do) from error
    check_fit(own, config, path)
    return Weights(config, own, said, others)


def save_weights(path: Path, weights: Weights, tread_rate: float | None = None) -> None:
    """Write weights, names, dtypes and bits as they are. The same weights make the same bytes.

    Args:
        path: the file; it is there whole or not at all.
        weights: what the published form does not name stays in the configuration as the file had
            it.
        tread_rate: the rate that the model was trained at; None: what the file said, if anything.

    Raises:
        InputError: the rate is outside [0, 1).
    """
    # The file's other metadata in published form is kept.
    said = weights.said if "width" not in weights.said else {}
    if tread_rate is None:
        tread_rate = (said.get(TREAD) or {}).get(RATE)
    else:
        num_kept(1, tread_rate)  # refuses a rate outside [0, 1)
    published = to_published(weights.config, tread_rate)
    config = weights.config.to_dict() if published is None else {**said, **published}
    tensors = {}
    for name, tensor in weights.tensors.items():
        tensors[PREFIX + name] = tensor.detach().cpu().contiguous()
    with written_aside(path) as aside:
        # One metadata key alone: safetensors writes several in an order that changes from run to
        # run.
        save_file(tensors, aside, metadata={"config": json.dumps(config, sort_keys=True)})
        aside.chmod(0o644)  # the library makes it readable by its owner alone


def check_fit(tensors: Mapping[str, Tensor], config: XUTConfig, path: Path) -> None:
    """Compare tensors (without prefix) with a model's: names and shapes must agree exactly.

    Raises:
        InputError: they differ; the first difference is named with both shapes.
    """
    wanted = _empty(config).state_dict()
    for name in sorted(tensors.keys() | wanted.keys()):
        have = tuple(tensors[name].shape) if name in tensors else "absent"
        want = tuple(wanted[name].shape) if name in wanted else "absent"
        if have != want:
            raise InputError(
                f"weights do not fit their configuration: {PREFIX}{name} is {have}, the model's"
                f" {want}",
                where=path,
            )


def _said(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        said = json.loads(metadata.get("config", "{}"))
    except ValueError as error:
        raise InputError(f"the metadata's `config` is not JSON: {error}", where=path) from error
    if not isinstance(said, dict):
        raise InputError("the metadata's `config` is not a JSON object", where=path)
    return said


def _empty(config: XUTConfig) -> Denoiser:
    # On the meta device a model takes no memory and draws no initial weights.
    with torch.device("meta"):
        return build_denoiser(config)
