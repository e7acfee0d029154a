"""Lightning checkpoints (.ckpt), opened without running any of the code that a pickle may hold."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdm.errors import DamagedError, InputError
from hdm.model_files.weights import PREFIX, Weights, of_tensors

EMA = "ema"
"""Under this name averaged weights that were not asked for are counted in `Weights.passed_over`."""
BUFFERS = (f"{PREFIX}time_emb.freqs",)  # constants, of which some averages keep no copy

# An average of the weights goes by many names: `ema.unet.model.x`, `unet_ema.model.x`,
# `unet.model.x` in `ema_state_dict`.
_AVERAGE = re.compile(r"(?=[\w.]*ema)[\w.]*?unet\w*\.(module\.)?model\.")


def read_checkpoint(path: Path, *, ema: bool = False) -> Weights:
    """The denoiser in a Lightning checkpoint, its configuration inferred from the shapes.

    Args:
        path: the file.
        ema: the averaged weights.

    Raises:
        InputError: no such file, one that needs code to open, or one without (averaged) denoiser
            weights.
        DamagedError: the file is cut off or garbled.
    """
    own, averages = {}, {}
    for name, tensor in _named(_load(path)):
        match = _AVERAGE.match(name)
        if match:
            averages[PREFIX + name[match.end() :]] = tensor
        else:
            own[name] = tensor
    if ema:
        _check_average(own, averages, path)
        # Averages may lack buffers, so these come from the weights.
        chosen = {**own, **averages}
    else:
        # Under another prefix, so that they are counted among what is passed over.
        chosen = dict(own)
        for name, tensor in averages.items():
            chosen[f"{EMA}.{name}"] = tensor
    weights = of_tensors(chosen, {}, path)
    # Clones, since tensors may be windows on one memory, which safetensors does not write.
    return replace(
        weights, tensors={name: tensor.clone() for name, tensor in weights.tensors.items()}
    )


def _check_average(own: Mapping[str, Tensor], averages: Mapping[str, Tensor], path: Path) -> None:
    if not averages:
        raise InputError("the checkpoint has no averaged weights", where=path, do="leave out --ema")
    missing = []
    for name in sorted(own.keys() - averages.keys()):
        if name.startswith(PREFIX) and name not in BUFFERS:
            missing.append(name)
    if missing:
        raise InputError(
            f"{len(missing)} tensors have no average, {missing[0]} first",
            where=path,
            do="leave out --ema",
        )


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError("no such checkpoint", where=path)
    try:
        # Only torch's zip format can be mapped; the older one is a plain pickle.
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"the checkpoint cannot be opened without running code from it: {_reason(error)}",
            where=path,
            do=(
                "ask its maker for a safetensors file, or for a checkpoint that holds tensors and"
                " plain values alone"
            ),
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise DamagedError(
            f"not a whole checkpoint: {_reason(error)}", where=path, do="fetch it again"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(
            f"the checkpoint holds a {type(content).__name__}, not named tensors", where=path
        )
    return content


def _reason(error: BaseException) -> str:
    """The line of torch's long message that names what it refused."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    # torch's message calls the refused class a GLOBAL.
    return next((line for line in lines if "GLOBAL" in line), lines[0]).split(". ")[0]


def _named(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the state, and of whatever is called an average beside it."""
    if not isinstance(content.get("state_dict"), Mapping):
        yield from _tensors(content)
    for key, group in content.items():
        if not isinstance(group, Mapping):
            continue
        if key == "state_dict":
            yield from _tensors(group)
        # Callbacks keep averages in groups of their own, whose names contain "ema".
        elif EMA in str(key):
            for name, tensor in _tensors(group):
                yield f"{key}.{name}", tensor


def _tensors(group: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in group.items():
        if isinstance(value, Tensor):
            yield name, value
