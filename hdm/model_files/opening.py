"""From a path to a denoiser, in whichever form it lies there."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from hdm.architecture import XUTConfig
from hdm.model_files.readers import reader_of
from hdm.model_files.stored import StoredModel
from hdm.models.components import weights_digest


def open_model(
    path: Path | str, *, average: bool | None = None, infer: bool = False
) -> StoredModel:
    """Read a denoiser's weights and card.

    Args:
        path: output folder of a training phase, diffusers folder, safetensors file or the folder
            that holds just one, or Lightning checkpoint.
        average: True: the averaged weights; False: the last ones, where both are there; None: the
            average of what training wrote, and a checkpoint's own weights.
        infer: infer the configuration from the shapes, as a published model's, where a
            safetensors file does not say it. A checkpoint's is always inferred.

    Raises:
        InputError: there is nothing of the kind, tensors do not fit their configuration, or there
            are no weights to choose between.
        DamagedError: a file is cut off or garbled.
    """
    path = Path(path)
    return reader_of(path).read(path, average, infer)


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
