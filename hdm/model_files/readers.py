"""The forms in which denoisers lie on disk, each with its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hdm.architecture import XUTConfig
from hdm.errors import InputError
from hdm.model_files.adapter import adapted, read_adapter
from hdm.model_files.card import ModelCard, card_of, read_card
from hdm.model_files.file_names import (
    ADAPTER,
    CARD,
    EMA,
    MODEL_INDEX,
    TENSORS,
    TRANSFORMER,
    WEIGHTS,
)
from hdm.model_files.lightning import read_checkpoint
from hdm.model_files.stored import StoredModel
from hdm.model_files.tensors import read_tensors
from hdm.model_files.weights import Weights, check_fit, read_weights
from hdm.models.components import read_json

CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth")


class Reader(Protocol):
    """One form of a denoiser on disk."""

    def recognises(self, path: Path) -> bool:
        """Whether the path is of this form; nothing but names is looked at."""
        ...

    def tensors_file(self, path: Path) -> Path:
        """The file whose tensors `read` takes where it may choose."""
        ...

    def read(self, path: Path, average: bool | None, infer: bool) -> StoredModel:
        """The model at a path of this form; arguments and errors as `open_model`."""
        ...


class Trained:
    """The folder that a training phase writes: weights, their average, and the card."""

    def recognises(self, path: Path) -> bool:
        return (path / CARD).is_file()

    def tensors_file(self, path: Path) -> Path:
        return path / EMA

    def read(self, path: Path, average: bool | None, infer: bool) -> StoredModel:
        card = read_card(path)
        # The average is what validation and the next phase use.
        name = WEIGHTS if average is False else EMA
        return StoredModel(_fitting(path / name, card.config), card, "trained")


class TrainedAdapter:
    """The folder that a training phase of an adapter writes: read with its base, into which it is
    merged.
    """

    def recognises(self, path: Path) -> bool:
        return (path / ADAPTER).is_file() and (path / CARD).is_file()

    def tensors_file(self, path: Path) -> Path:
        # Its metadata names the base.
        return path / ADAPTER

    def read(self, path: Path, average: bool | None, infer: bool) -> StoredModel:
        _check_no_choice(path, average)
        card = read_card(path)
        base = Trained().read(_base_of(path, card), None, infer)
        return replace(adapted(base, read_adapter(path)), card=card)


def _base_of(path: Path, card: ModelCard) -> Path:
    """The folder of an adapter's base, in the store where the adapter is."""
    # STORE/train.64px/DIGEST: the store is two levels up.
    store = path.resolve().parents[1]
    if card.base is not None and card.base.output is not None:
        folder = store / card.base.output
        if (folder / CARD).is_file():
            return folder
    raise InputError(
        "the model that this adapter was trained on is not in the store beside it",
        where=path,
        do=f"name both: --weights MODEL --lora {path}",
    )


class DiffusersFolder:
    """A pipeline's folder, with the denoiser in `transformer`; its index may hold card fields."""

    def recognises(self, path: Path) -> bool:
        return (path / MODEL_INDEX).is_file()

    def tensors_file(self, path: Path) -> Path:
        return path / TRANSFORMER / TENSORS

    def read(self, path: Path, average: bool | None, infer: bool) -> StoredModel:
        _check_no_choice(path, average)
        do = "write the folder again"
        index = read_json(path / MODEL_INDEX, do)
        config = _without_underscores(read_json(path / TRANSFORMER / "config.json", do))
        weights = _fitting(self.tensors_file(path), XUTConfig.from_dict(config))
        # Our card's fields stand in the index beside diffusers' own, and diffusers keeps them.
        card = card_of(index, weights.config, path / MODEL_INDEX, do)
        return StoredModel(weights, card, "diffusers")


class Checkpoint:
    """A Lightning checkpoint. Its own weights are read unless the average is asked for."""

    def recognises(self, path: Path) -> bool:
        return path.suffix in CHECKPOINT_SUFFIXES and not path.is_dir()

    def tensors_file(self, path: Path) -> Path:
        return path

    def read(self, path: Path, average: bool | None, infer: bool) -> StoredModel:
        weights = read_checkpoint(path, ema=bool(average))
        return StoredModel(weights, ModelCard(weights.config), "checkpoint")


class WeightsFile:
    """A safetensors file, ours or a published one, or the folder that holds just one."""

    def recognises(self, path: Path) -> bool:
        # This reader takes what no other recognises, so it is the last of READERS.
        return True

    def tensors_file(self, path: Path) -> Path:
        if not path.is_dir():
            return path
        files = sorted(path.glob("*.safetensors"))
        # `hdm weights import` writes such folders. Among several files the choice would be a guess.
        if len(files) == 1:
            return files[0]
        raise InputError(
            f"there is neither {CARD} (what training writes) nor {MODEL_INDEX} (diffusers), "
            f"and {len(files)} .safetensors files",
            where=path,
            do="name such a folder, or a .safetensors file",
        )

    def read(self, path: Path, average: bool | None, infer: bool) -> StoredModel:
        _check_no_choice(path, average)
        weights = read_weights(self.tensors_file(path), inferring=infer)
        return StoredModel(weights, ModelCard(weights.config), "file")


READERS: tuple[Reader, ...] = (
    TrainedAdapter(),
    Trained(),
    DiffusersFolder(),
    Checkpoint(),
    WeightsFile(),
)
"""The first that recognises a path reads it."""


def reader_of(path: Path) -> Reader:
    """The reader of the form that a path has."""
    return next(reader for reader in READERS if reader.recognises(path))


def _check_no_choice(path: Path, average: bool | None) -> None:
    """Refuse a choice between weights where there is one set of them alone."""
    if average is None:
        return
    if average:
        raise InputError("--ema is for checkpoints", where=path, do="leave it out")
    raise InputError(
        "raw weights lie beside averaged ones in what training wrote alone",
        where=path,
        do="leave out --raw",
    )


def _without_underscores(values: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers configuration without what diffusers adds to it."""
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _fitting(path: Path, config: XUTConfig) -> Weights:
    """Tensors named as XUT names them, in a file that leaves their configuration to another."""
    tensors = read_tensors(path)
    check_fit(tensors, config, path)
    return Weights(config, tensors)
