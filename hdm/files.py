"""Read files, with errors in our own words, and write them so that a kill or a full disk leaves the
old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from hdm.errors import FULL, DamagedError, DoesNotFitError, HdmError, InputError

TEMPORARY = ".tmp-"
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_FOLDER = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
REFUSALS = (*FULL, *FORBIDDEN, *NO_FOLDER, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EIO)
"""What a machine refuses to any program: reported in one line, where it occurs."""
DAMAGE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EIO)
"""Error codes for a file that is missing, is something else, or lies on a bad block."""
CHUNK_BYTES = 1 << 20
TEMPORARY_BYTES = 16 << 20  # free, at least, before a command begins
Record = TypeVar("Record")


def canonical_json(value: Any) -> bytes:
    """JSON that is equal for equal values: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def read_json(data: bytes | str) -> Any:
    """The value of JSON text that may be damaged.

    Raises:
        ValueError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_record(path: Path, shape: type[Record], do: str) -> Record:
    """A JSON file that this program wrote, of the shape in which it did.

    Args:
        path: the file.
        shape: a type that pydantic knows, as `dict[str, float]` or a TypedDict.
        do: what the error tells the reader to do.

    Raises:
        DamagedError: it is not there, no JSON, or JSON of another shape.
        HdmError: the machine refuses to read it.
    """
    from pydantic import TypeAdapter, ValidationError

    from hdm.values import faults_of

    try:
        return TypeAdapter(shape).validate_json(path.read_bytes())
    except ValidationError as error:
        first = faults_of(error)[0]
        raise DamagedError(f"not what was written there: {first}", where=path, do=do) from error
    except OSError as error:
        raise explain_read_error(error, path) from error


@dataclass(frozen=True)
class Hashes:
    """Of a file's bytes, in hex digits: sha256 for proof, 128 bits of XXH3 for every time that the
    file is used.
    """

    sha256: str
    xxh3: str


def hash_file(path: Path) -> Hashes:
    """Both hashes in one reading.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    slow = hashlib.sha256()
    fast = xxhash.xxh3_128()
    for chunk in chunks(path):
        slow.update(chunk)
        fast.update(chunk)
    return Hashes(slow.hexdigest(), fast.hexdigest())


def sha256_file(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """sha256 of the file's bytes, as 64 hex digits.

    Args:
        path: the file.
        advance: called with the number of bytes of each piece that was read.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    found = hashlib.sha256()
    for chunk in chunks(path):
        found.update(chunk)
        if advance is not None:
            advance(len(chunk))
    return found.hexdigest()


def fast_hash(path: Path) -> str:
    """128 bits of XXH3 of the file's bytes, as 32 hex digits.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    found = xxhash.xxh3_128()
    for chunk in chunks(path):
        found.update(chunk)
    return found.hexdigest()


def chunks(path: Path) -> Iterator[memoryview]:
    """The file's bytes, piece by piece; each piece is overwritten by the next.

    Read, not mapped: a bad block is then an OSError, where a mapped page would end the process.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    check_regular(path)
    # One buffer for all pieces, so that reading allocates and copies nothing.
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: opening a pipe would wait for a writer.

    Raises:
        OSError: the path leads to a folder, a pipe, a device, or nowhere.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.ELOOP
        text = os.strerror(number) if stat.S_ISDIR(mode) else "Not a regular file"
        raise OSError(number, text, str(path))


def explain_read_error(error: OSError, path: Path) -> HdmError:
    """The error to raise in place of an OSError met while reading `path`: damage, a missing
    permission, or the machine's limits.
    """
    if error.errno in DAMAGE:
        return DamagedError(
            f"not a file that can be read: {error.strerror}",
            where=path,
            do="run the same command again: it is made anew",
        )
    if error.errno in FORBIDDEN:
        return InputError(
            f"cannot read: {error.strerror}",
            where=path,
            do="ask its owner for permission to read it (chmod a+r)",
        )
    return HdmError(
        f"cannot read: {error.strerror}",
        where=path,
        do="look at the disk and the limits of open files, then run again",
    )


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing if it is not there.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():  # of a link, never what it leads to
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside_of(path: Path) -> Path:
    """A temporary path beside `path` that is this process's own on every machine that shares the
    folder.
    """
    # Beside it, because a rename is atomic only within one file system. The host as a short hash,
    # since its name may hold any character, and a file's name at most 255 bytes.
    host = xxhash.xxh3_64_hexdigest(os.fsencode(socket.gethostname()))[:8]
    return path.parent / f"{TEMPORARY}{host}-{os.getpid()}-{path.name}"


@contextlib.contextmanager
def written_aside(path: Path, needed_bytes: int | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, to be written by the caller; renamed to `path` at the end of
    the block.

    On any error the temporary is removed and `path` is as it was.

    Args:
        path: the file.
        needed_bytes: how large it will be, to say on a full disk; None: not known beforehand.

    Raises:
        DoesNotFitError: the disk is full (needed and free bytes are named where known).
        HdmError: the folder cannot be written.
        ConnectionError: as the block raised it.
    """
    temporary = aside_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Content first, then the name: after a power cut, the new name may otherwise lead to a file
        # without its content. The rename itself is durable once the folder is synced.
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
        raise explain_os_error(error, path, needed_bytes, _size(temporary)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def make_folder(path: Path, do: str) -> None:
    """Make a folder that a person named, and those above it, where they are missing.

    Args:
        path: the folder.
        do: the error's advice.

    Raises:
        InputError: it cannot be, as with a file in its place.
        OSError: the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"cannot make this folder: {error.strerror}", where=path, do=do) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file's content, atomically."""
    with written_aside(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Replace the file's content with readable JSON, atomically."""
    write_bytes(
        path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    )


def explain_os_error(
    error: OSError, path: Path, needed_bytes: int | None = None, written_bytes: int = 0
) -> HdmError:
    """The error to raise in place of an OSError met while writing `path`.

    Args:
        error: what the system said.
        path: what was written.
        needed_bytes: how large it was to be; None: not known.
        written_bytes: how much of it was there when the error came, which is freed again.

    Raises:
        ConnectionError: the error itself, where it is one: a pipe or a socket broke, no file did.
    """
    if isinstance(error, ConnectionError):
        raise error
    if error.errno in FULL:
        return no_space(path, needed_bytes, written_bytes)
    if error.errno in (*FORBIDDEN, *NO_FOLDER):
        return HdmError(
            f"cannot write: {error.strerror}",
            where=path,
            do="choose another store with HDM_STORE or --store, or run as the owner of this one",
        )
    return HdmError(
        f"cannot write: {error.strerror}",
        where=path,
        do="look at the disk and the limits of open and large files, then run again",
    )


def no_space(path: Path, needed_bytes: int | None, written_bytes: int = 0) -> DoesNotFitError:
    """The error of a full disk: what is needed, where that is known, and what is free.

    Args:
        path: what does not fit; it need not be there.
        needed_bytes: its size; None: only that it is more than `written_bytes`.
        written_bytes: what is taken now and will be free again.
    """
    details = []
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free + written_bytes
        details.append(f"{free / 1e6:.1f} MB free")
    if needed_bytes is not None:
        details.append(f"{needed_bytes / 1e6:.1f} MB needed")
    elif written_bytes:
        details.append(f"more than {written_bytes / 1e6:.1f} MB needed")
    return DoesNotFitError(
        "no space left" + (f": {', '.join(details)}" if details else ""),
        where=path,
        do=(
            "make room (hdm gc shows what is no longer needed), then run the same command again;"
            " finished files are kept"
        ),
    )


def check_temporary(needed_bytes: int = TEMPORARY_BYTES) -> None:
    """Refuse to begin if there is no room for temporary files: the services' databases need some at
    once, and their errors do not say which disk is full.

    Raises:
        DoesNotFitError: the folder of TMPDIR has less.
    """
    # Not `gettempdir` where TMPDIR is set: that passes over a full folder, which SQLite does not.
    folder = Path(os.environ.get("TMPDIR") or tempfile.gettempdir())
    with contextlib.suppress(FileNotFoundError):
        free = shutil.disk_usage(folder).free
        if free < needed_bytes:
            raise DoesNotFitError(
                f"no space for temporary files: {free / 1e6:.1f} MB free, {needed_bytes / 1e6:.1f}"
                " MB needed",
                where=folder,
                do=(
                    "make room there, or name another folder in TMPDIR; then run the same command"
                    " again"
                ),
            )
