"""Weights from wherever they lie: a file, what training wrote, a diffusers folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hdm.architecture import XUTConfig
from hdm.errors import InputError
from hdm.models.components import read_json, weights_digest
from hdm.models.file_names import EMA, MODEL, WEIGHTS
from hdm.models.tensors import read_tensors
from hdm.models.weights import Weights, check_fit, read_weights

MODEL_INDEX, TRANSFORMER = "model_index.json", "transformer"
TENSORS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Source:
    """Weights, and what is said beside them: `model.json` of what training wrote,
    `model_index.json` of a diffusers folder.
    """

    weights: Weights
    told: dict[str, Any] = field(default_factory=dict)


def read_source(path: Path, *, raw: bool = False) -> Source:
    """The weights at a path.

    Args:
        path: safetensors file, a folder with one, output folder of a training phase, or diffusers
            folder.
        raw: of what training wrote, the last weights instead of their average.

    Raises:
        InputError: there is nothing of the kind, or tensors do not fit their configuration.
        DamagedError: a file is cut off or garbled.
    """
    trained = (path / MODEL).is_file()
    if raw and not trained:
        raise InputError(
            "raw weights lie beside averaged ones in what training wrote alone",
            where=path,
            do="leave out --raw",
        )
    if trained:
        told = read_json(path / MODEL, do="train again, or name another folder")
        return Source(_beside(told.get("xut", {}), path / (WEIGHTS if raw else EMA)), told)
    if (path / MODEL_INDEX).is_file():
        told = read_json(path / MODEL_INDEX, do="write the folder again")
        values = read_json(path / TRANSFORMER / "config.json", do="write the folder again")
        config = {name: value for name, value in values.items() if not name.startswith("_")}
        return Source(_beside(config, path / TRANSFORMER / TENSORS), told)
    return Source(read_weights(_only_file(path)))


def tensors_file(path: Path) -> Path:
    """The file whose tensors `read_source` takes from a path; errors as there."""
    if (path / MODEL).is_file():
        return path / EMA
    if (path / MODEL_INDEX).is_file():
        return path / TRANSFORMER / TENSORS
    return _only_file(path)


def source_digest(path: Path) -> str:
    """sha256 of the tensors that `read_source` takes from a path; they may move and be renamed.

    Raises:
        InputError: there are none.
    """
    return weights_digest(str(tensors_file(path)))


def source_config(path: Path) -> XUTConfig:
    """The configuration of the denoiser at a path; errors as `read_source`."""
    state = tensors_file(path).stat() if tensors_file(path).exists() else None
    key = (state.st_size, state.st_mtime_ns) if state else (0, 0)
    return _config(path, *key)


@lru_cache(maxsize=16)
def _config(path: Path, size: int, changed_ns: int) -> XUTConfig:
    """Kept by size and time of change, so that gigabytes are read once in a process."""
    return read_source(path).weights.config


def _only_file(path: Path) -> Path:
    """The weights file at a path, which may be a folder that holds one, as `hdm weights import
    --out FOLDER` leaves it.
    """
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    raise InputError(
        f"there is neither {MODEL} (what training writes) nor {MODEL_INDEX} (diffusers), and {len(files)} .safetensors files",
        where=path,
        do="name such a folder, or a .safetensors file",
    )


def _beside(values: dict[str, Any], path: Path) -> Weights:
    """Tensors named as XUT names them, in a file that leaves their configuration to another."""
    tensors = read_tensors(path)
    config = XUTConfig.from_dict(values)
    check_fit(tensors, config, path)
    return Weights(config, tensors)
