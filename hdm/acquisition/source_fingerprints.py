"""Fingerprints of files: equal for equal content wherever it lies, cheap enough to take at every
start.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from hdm.files import canonical_json, sha256_file

EDGE_BYTES = 1 << 16


def whole(path: Path) -> str:
    """sha256 of a file's content; kept in this process until the file changes."""
    return _whole(path, *_state(path))


def tree(files: Iterable[tuple[str, Path]]) -> dict[str, Any]:
    """Number of files, and one sha256 over each one's name, size, and first and last 64 KiB.

    Args:
        files: (name relative to the source, path), in a fixed order.
    """
    count = 0
    digest = hashlib.sha256()
    for name, path in files:
        state = _state(path)
        digest.update(
            canonical_json([os.fsencode(name).hex(), state[0], _edges(path, *state)]) + b"\n"
        )
        count += 1
    return {"files": count, "sha256": digest.hexdigest()}


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _whole(path: Path, size: int, modified_ns: int) -> str:
    return sha256_file(path)


@lru_cache(maxsize=1 << 20)
def _edges(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        start = file.read(EDGE_BYTES)
        file.seek(max(size - EDGE_BYTES, len(start)))
        return hashlib.sha256(start + file.read(EDGE_BYTES)).hexdigest()
