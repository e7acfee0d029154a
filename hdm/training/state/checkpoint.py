"""Checkpoints: all that training needs to go on, and reading a finished model.

    checkpoint-00000100/
        weights.safetensors  ema.safetensors  optimizer.safetensors  ema-0.05.safetensors …
        metrics.jsonl        as it was then, so that it goes on byte by byte
        state.json           where training stood, XXH3 of every file, sha256 of itself

Releases before 0.2 wrote sha256 of every file.

A folder is written aside, synced and renamed: it is there whole or not at all. Two are kept, so
that one flipped bit costs the time between two checkpoints and not the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdm.errors import DamagedError, InputError
from hdm.files import (
    TEMPORARY,
    canonical_json,
    explain_os_error,
    fast_hash,
    no_space,
    sha256_file,
    sync,
)
from hdm.model_files.tensors import num_bytes, read_tensors, save_tensors
from hdm.sharding import local, share
from hdm.training.process.job import METRICS, checkpoint_folder

STATE = "state.json"
SUFFIX = ".safetensors"
KEEP = 2  # two, so that one is left if the newest is damaged

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `state` is what was saved as such."""

    path: Path
    state: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One of its sets of tensors: `weights`, `ema`, `optimizer`."""
        return read_tensors(self.path / f"{name}{SUFFIX}")

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
    """Write a checkpoint, and remove all others but the newest two good ones.

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
    write_folder(path, tensors, {METRICS: metrics}, state)
    _prune(folder)
    return path


def write_folder(
    path: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    files: Mapping[str, bytes],
    state: Mapping[str, Any],
) -> None:
    """Write a folder that `read` can check: complete or absent.

    Args:
        path: the folder; one that is there is replaced.
        tensors: set's name → tensor's name → tensor, on any device.
        files: name → content of other files.
        state: plain JSON values.

    Raises:
        DoesNotFitError: the disk is full, or too full for it: needed and free bytes are named.
        HdmError: the folder cannot be written.
    """
    aside = path.with_name(f"{TEMPORARY}{path.name}")
    needed = sum(map(num_bytes, tensors.values())) + sum(map(len, files.values()))
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        # Half a checkpoint is of no use, and writing it takes minutes of a disk that others need
        # too.
        if shutil.disk_usage(aside).free < needed:
            raise no_space(path, needed)
        for name, values in tensors.items():
            save_tensors(aside / f"{name}{SUFFIX}", values)
        for name, content in files.items():
            (aside / name).write_bytes(content)
        hashes = {file.name: fast_hash(file) for file in sorted(aside.iterdir())}
        # The record comes last, since it holds the hashes of all other files.
        body = {**state, "xxh3": hashes}
        (aside / STATE).write_bytes(canonical_json({**body, "sha256": _digest(body)}))
        # Before the rename: a checkpoint that has its name is complete, also after a power cut.
        for file in (*aside.iterdir(), aside):
            sync(file)
        shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)
        # The rename is durable only once the parent folder is synced.
        sync(path.parent)
    except OSError as error:
        raise explain_os_error(error, path, needed) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def newest(
    folder: Path, wanted: Callable[[Mapping[str, Any]], bool] = lambda state: True
) -> Checkpoint | None:
    """The newest intact checkpoint whose state is wanted, or None. Damaged ones are reported, set
    aside and skipped.
    """
    # A killed run left these. Callers wait for the writer first, so nothing is being written now.
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover)
    for path in reversed(_all(folder)):
        try:
            checkpoint = read(path)
        except DamagedError as error:
            log.warning("%s; the checkpoint before it is used", error.what)
            # Damaged checkpoints are set aside for whoever looks for the cause.
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        else:
            if wanted(checkpoint.state):
                return checkpoint
            # Intact, but not wanted: it stays, and an older one is looked for.
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
        # The record is verified first, since it holds the hashes of the other files.
        claimed = state.pop("sha256")
        # Checkpoints of releases before 0.2 have sha256 alone.
        hashes, hashed = (
            (state["xxh3"], fast_hash) if "xxh3" in state else (state["files"], sha256_file)
        )
        intact = _digest(state) == claimed
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damage(path / STATE) from error
    if not intact:
        raise _damage(path / STATE)
    for name, expected in hashes.items():
        try:
            whole = hashed(path / name) == expected
        except OSError as error:
            raise _damage(path / name) from error
        if not whole:
            raise _damage(path / name)
    return Checkpoint(path, state)


def _damage(path: Path) -> DamagedError:
    return DamagedError(
        f"{path} is damaged", where=path, do=f"remove {path.parent}, then run the same again"
    )


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()


def _prune(folder: Path) -> None:
    """Remove old checkpoints. Each is renamed first, so that a kill leaves no partial checkpoint
    that looks complete.
    """
    paths = _all(folder)
    # The newest is kept even if it is not good: a kill resumes from it all the same.
    kept = {paths[-1], *[path for path in paths if _is_good(path)][-KEEP:]}
    for path in paths:
        if path in kept:
            continue
        aside = path.with_name(f"{TEMPORARY}{path.name}")
        with contextlib.suppress(OSError):
            path.rename(aside)
            shutil.rmtree(aside)


def _is_good(path: Path) -> bool:
    """Whether a checkpoint records that it is good. It may be damaged nevertheless."""
    try:
        return bool(json.loads((path / STATE).read_bytes()).get("good", True))
    except (OSError, ValueError, AttributeError):
        return False


def load_weights(model: torch.nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Load weights into a model whose names and shapes must match exactly.

    Raises:
        InputError: they differ; the error names some of both sides.
    """
    load_tensors(model.state_dict(), tensors, where)


def load_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy into a model's own tensors others whose names and shapes must match exactly.

    Raises:
        InputError: they differ; the error names some of both sides.
    """
    have = {name: tuple(value.shape) for name, value in tensors.items()}
    want = {name: tuple(value.shape) for name, value in own.items()}
    if have != want:
        file_has = [f"{name} {shape}" for name, shape in have.items() if want.get(name) != shape][
            :3
        ]
        model_has = [f"{name} {shape}" for name, shape in want.items() if have.get(name) != shape][
            :3
        ]
        raise InputError(
            "the weights do not fit the model: the file has"
            f" {', '.join(file_has) or 'nothing more'}, the model has"
            f" {', '.join(model_has) or 'nothing more'}",
            where=where,
            do="train.model has to stay the same over all phases",
        )
    for name, value in own.items():
        # Copying keeps the parameter objects, which optimizers hold, and their devices and shards.
        local(value).copy_(share(tensors[name], value))
