"""Fingerprints of files: equal for equal content anywhere, and cheap enough for every start."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from hdm.files import canonical_json, sha256_file

# Of larger files only the edges are read: to hash a large source whole would take hours at every
# start.
EDGE_BYTES = 1 << 16


def whole(path: Path) -> str:
    """sha256 of a file's content, cached in this process until the file changes."""
    return _whole(path, *_state(path))


def tree(files: Iterable[tuple[str, Path]]) -> dict[str, Any]:
    """Number of files, and one sha256 over the name, size, and first and last 64 KiB of each.

    Args:
        files: (name relative to the source, path), in a fixed order.
    """
    count = 0
    digest = hashlib.sha256()
    for name, path in files:
        size, modified_ns = _state(path)
        # Names need not be valid Unicode.
        entry = [os.fsencode(name).hex(), size, _edges(path, size, modified_ns)]
        digest.update(canonical_json(entry) + b"\n")
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
        # No byte twice: a file shorter than both edges is read whole.
        file.seek(max(size - EDGE_BYTES, len(start)))
        return hashlib.sha256(start + file.read(EDGE_BYTES)).hexdigest()
