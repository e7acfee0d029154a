"""Safetensors files: the one way in which weights are read, and the one in which training writes
them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hdm.errors import DamagedError, InputError
from hdm.files import check_regular, explain_read_error
from hdm.store import checked


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """An open safetensors file (`safetensors.safe_open`), on the CPU.

    If it belongs to an output, its bytes are compared with the manifest's hash first.

    Raises:
        InputError: it is not there, or may not be read.
        DamagedError: it is not what was written, or no whole safetensors file.
    """
    try:
        # A named pipe would block, and a folder would fail without its name.
        check_regular(checked(path))
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError("no such weights file", where=path, do="name another") from error
    except OSError as error:
        raise explain_read_error(error, path) from error
    except SafetensorError as error:
        raise DamagedError(
            f"not a whole safetensors file: {error}",
            where=path,
            do="make it again: run the command that wrote it, or fetch it anew",
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name, on the CPU; errors as `open_tensors`."""
    with open_tensors(path) as file:
        # `file` is no mapping: it cannot be iterated over.
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, the same bytes for the same tensors.

    Raises:
        OSError: it cannot be written.
    """
    try:
        # safetensors refuses views, hence the contiguous copies.
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


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What the tensors take in a file, but for its header of some kilobytes."""
    return sum(value.nbytes for value in tensors.values())
