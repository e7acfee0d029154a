"""Weights from wherever they lie: a file, what training wrote, a diffusers folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdm.architecture import XUTConfig
from hdm.errors import InputError
from hdm.models.components import read_json
from hdm.models.tensors import read_tensors
from hdm.models.weights import Weights, check_fit, read_weights
from hdm.training.job import EMA, MODEL, WEIGHTS

MODEL_INDEX, TRANSFORMER = "model_index.json", "transformer"
TENSORS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Source:
    """Weights, and what is said beside them: `model.json` of what training wrote, `model_index.json` of a diffusers folder."""

    weights: Weights
    told: dict[str, Any] = field(default_factory=dict)


def read_source(path: Path, *, raw: bool = False) -> Source:
    """The weights at a path.

    Args:
        path: safetensors file, output folder of a training phase, or diffusers folder.
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
    if path.is_dir():
        raise InputError(
            f"there is neither {MODEL} (what training writes) nor {MODEL_INDEX} (diffusers)",
            where=path,
            do="name such a folder, or a .safetensors file",
        )
    return Source(read_weights(path))


def _beside(values: dict[str, Any], path: Path) -> Weights:
    """Tensors named as XUT names them, in a file that leaves their configuration to another."""
    tensors = read_tensors(path)
    config = XUTConfig.from_dict(values)
    check_fit(tensors, config, path)
    return Weights(config, tensors)
