"""Writing files so that a kill or a full disk leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hdm.errors import DoesNotFitError, HdmError

TEMPORARY = ".tmp-"
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_FOLDER = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
REFUSALS = (*FULL, *FORBIDDEN, *NO_FOLDER, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EIO)
"""What a machine refuses to any program: told in a line, where it is met."""


def canonical_json(value: Any) -> bytes:
    """JSON that is equal for equal values: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_file(path: Path) -> str:
    """sha256 of the file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to be written by the caller; renamed to `path` at the end of the block.

    On any error the temporary is removed and `path` is as it was.

    Raises:
        DoesNotFitError: the disk is full (needed and free bytes are named where known).
        HdmError: the folder cannot be written.
        ConnectionError: as the block raised it.
    """
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (
            temporary,
            path,
            path.parent,
        ):
            raise  # the caller's own reading failed
        raise explain_os_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file's content, atomically."""
    with written_aside(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Replace the file's content with readable JSON, atomically."""
    write_bytes(
        path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    )


def explain_os_error(error: OSError, path: Path) -> HdmError:
    """The error to raise in place of an OSError met while writing `path`.

    Raises:
        ConnectionError: the error itself, where it is one: a pipe or a socket broke, no file did.
    """
    if isinstance(error, ConnectionError):
        raise error
    if error.errno in FULL:
        free = ""
        with contextlib.suppress(OSError):
            free = f": {shutil.disk_usage(path.parent).free / 1e6:.1f} MB free"
        return DoesNotFitError(
            f"no space left{free}",
            where=path,
            do="make room, then run the same command again; finished shards are kept",
        )
    if error.errno in (*FORBIDDEN, *NO_FOLDER):
        return HdmError(
            f"cannot write: {error.strerror}",
            where=path,
            do="choose another store with HDM_STORE or --store",
        )
    return HdmError(
        f"cannot write: {error.strerror}",
        where=path,
        do="look at the disk and the limits of open and large files, then run again",
    )
