"""From a path to a denoiser, in whichever form it lies there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hdm.architecture import XUTConfig
from hdm.model_files.adapter import adapted, read_adapter
from hdm.model_files.readers import reader_of
from hdm.model_files.stored import StoredModel
from hdm.models.components import weights_digest

log = logging.getLogger(__name__)


class Addition(NamedTuple):
    """An adapter to merge into a model.

    Args:
        path: what `read_adapter` reads.
        scale: 1: as trained.
    """

    path: Path
    scale: float = 1.0


def open_model(
    path: Path | str,
    *,
    average: bool | None = None,
    infer: bool = False,
    adapters: Sequence[Addition] = (),
) -> StoredModel:
    """Read a denoiser's weights and card.

    Args:
        path: output folder of a training phase, diffusers folder, safetensors file or the folder
            that holds just one, or Lightning checkpoint.
        average: True: the averaged weights; False: the last ones, where both are there; None: the
            average of what training wrote, and a checkpoint's own weights.
        infer: infer the configuration from the shapes, as a published model's, where a
            safetensors file does not say it. A checkpoint's is always inferred.
        adapters: merged into it, one after the other.

    Raises:
        InputError: there is nothing of the kind, tensors do not fit their configuration, there are
            no weights to choose between, or an adapter is for another base.
        DamagedError: a file is cut off or garbled.
    """
    path = Path(path)
    model = reader_of(path).read(path, average, infer)
    for addition in adapters:
        adapter = read_adapter(addition.path)
        if adapter.base not in (None, model_digest(path)):
            log.warning(
                "%s was trained on other weights than %s; it fits their sizes, and is used",
                *(addition.path, path),
            )
        model = adapted(model, adapter, addition.scale)
    return model


def model_digest(path: Path) -> str:
    """sha256 of the tensors that `open_model` reads from a path; they may move and be renamed.

    Raises:
        InputError: there are none.
    """
    return weights_digest(str(reader_of(path).tensors_file(path)))


def model_config(path: Path) -> XUTConfig:
    """The configuration of the denoiser at a path; errors as `open_model`."""
    file = reader_of(path).tensors_file(path)
    state = file.stat() if file.exists() else None
    # `open_model` reports a missing file.
    key = (state.st_size, state.st_mtime_ns) if state else (0, 0)
    return _config(path, *key)


@lru_cache(maxsize=16)
def _config(path: Path, size: int, changed_ns: int) -> XUTConfig:
    """Kept by size and time of change, so that gigabytes are read once in a process."""
    return open_model(path).card.config
