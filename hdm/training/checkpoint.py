"""Checkpoints: all that training needs to go on, and reading a finished model.

    checkpoint-00000100/
        weights.safetensors  ema.safetensors  optimizer.safetensors  ema-0.05.safetensors …
        metrics.jsonl        as it was then, so that it goes on byte by byte
        state.json           where training stood, sha256 of every file and of itself

A folder is written aside, synced and renamed: it is there whole or not at all. Two are kept, so that one flipped bit costs the
time between two checkpoints and not the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hdm.errors import DamagedError, InputError
from hdm.files import TEMPORARY, canonical_json, explain_os_error, sha256_file, sync
from hdm.sharding import local, share
from hdm.training.job import METRICS, checkpoint_folder

STATE, SUFFIX, KEEP = "state.json", ".safetensors", 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `state` is what was saved as such."""

    path: Path
    state: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One of its sets of tensors: `weights`, `ema`, `optimizer`."""
        return load_file(self.path / f"{name}{SUFFIX}")

    @property
    def metrics(self) -> bytes:
        return (self.path / METRICS).read_bytes()


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    metrics: bytes,
    state: Mapping[str, Any],
) -> Path:
    """Write a checkpoint and drop all but it and the newest two that are good.

    Args:
        folder: where checkpoints lie.
        step: number of optimizer steps done; names it.
        tensors: set's name → tensor's name → tensor, on any device.
        metrics: content of metrics.jsonl.
        state: plain JSON values; one that holds `"good": False` does not count among the two.

    Raises:
        DoesNotFitError: the disk is full; the checkpoints before are kept.
        HdmError: the folder cannot be written.
    """
    path = checkpoint_folder(folder, step)
    aside = folder / f"{TEMPORARY}{path.name}"
    try:
        aside.mkdir(parents=True)
        for name, values in tensors.items():
            save_tensors(aside / f"{name}{SUFFIX}", values)
        (aside / METRICS).write_bytes(metrics)
        files = {file.name: sha256_file(file) for file in sorted(aside.iterdir())}
        body = {**state, "files": files}
        (aside / STATE).write_bytes(canonical_json({**body, "sha256": _digest(body)}))
        for file in (*aside.iterdir(), aside):
            sync(file)
        aside.rename(path)
        sync(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)  # half a checkpoint is of no use, and takes room
        raise explain_os_error(error, path) from error
    _prune(folder)
    return path


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, the same bytes for the same tensors.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path
        )
        path.chmod(0o644)  # the library makes it readable by its owner alone
    except SafetensorError as error:
        # The library wraps the system's error in text.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        DamagedError: it is missing or not whole.
    """
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise DamagedError(
            f"{path.name} is damaged",
            where=path,
            do="remove the folder that holds it; the phase begins anew",
        ) from error


def newest(
    folder: Path, wanted: Callable[[Mapping[str, Any]], bool] = lambda state: True
) -> Checkpoint | None:
    """The newest checkpoint that holds and whose state is wanted, or None. Damaged ones are named, set aside and passed over."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover)
    for path in reversed(_all(folder)):
        try:
            found = read(path)
        except DamagedError as error:
            log.warning("%s; the checkpoint before it is used", error.what)
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        else:
            if wanted(found.state):
                return found
    return None


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*") if path.suffix != ".damaged")


def read(path: Path) -> Checkpoint:
    """A checkpoint, every file checked.

    Raises:
        DamagedError: one is missing or not what was written.
    """
    try:
        state = json.loads((path / STATE).read_bytes())
        claimed = state.pop("sha256")
        files = state["files"]
        intact = _digest(state) == claimed
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path / STATE} is damaged", where=path / STATE) from error
    if not intact:
        raise DamagedError(f"{path / STATE} is damaged", where=path / STATE)
    for name, sha256 in files.items():
        if not (path / name).is_file() or sha256_file(path / name) != sha256:
            raise DamagedError(f"{path / name} is damaged", where=path / name)
    return Checkpoint(path, state)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()


def _prune(folder: Path) -> None:
    """Drop old checkpoints; renamed first, so that a kill leaves no half of one that looks whole."""
    paths = _all(folder)
    kept = {paths[-1], *[path for path in paths if _is_good(path)][-KEEP:]}
    for path in paths:
        if path in kept:
            continue
        aside = path.with_name(f"{TEMPORARY}{path.name}")
        with contextlib.suppress(OSError):
            path.rename(aside)
            shutil.rmtree(aside)


def _is_good(path: Path) -> bool:
    """What it says of itself; whether it holds is another matter, for which there are two."""
    try:
        return bool(json.loads((path / STATE).read_bytes()).get("good", True))
    except (OSError, ValueError):
        return False


def load_weights(model: torch.nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Fill a model, names and shapes exactly.

    Raises:
        InputError: they differ; some of both sides are named.
    """
    have = {name: tuple(value.shape) for name, value in tensors.items()}
    want = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if have != want:
        file_has = [f"{name} {shape}" for name, shape in have.items() if want.get(name) != shape][
            :3
        ]
        model_has = [f"{name} {shape}" for name, shape in want.items() if have.get(name) != shape][
            :3
        ]
        raise InputError(
            f"the weights do not fit the model: the file has {', '.join(file_has) or 'nothing more'}, "
            f"the model has {', '.join(model_has) or 'nothing more'}",
            where=where,
            do="train.model has to stay the same over all phases",
        )
    for name, value in model.state_dict().items():
        local(value).copy_(share(tensors[name], value))
