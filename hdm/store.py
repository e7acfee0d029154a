"""The store: outputs named by what they depend on, written so that an interrupted run can resume.

    <store>/<output name>/<digest>/      one output, e.g. store/encode.64px/3f2a…/
        manifest.json     written last; the output exists if and only if this is there and valid
        <files>           shards, tables, weights
        run.json          times, rates, code and machines of the runs that made it; in no digest
        .journal.jsonl    one line per finished file, so that a restart adopts it
        .copies/          the manifest, and small files that only a full rerun could restore
        .scratch/         state for resuming (training checkpoints); removed by the commit
        .used             its time is that of the last use; locked while a run reads the output
        .hashes.json      fast hashes of files whose manifest, from an older release, has none
        <file>.damaged    a file whose content is not what was written

A digest covers everything that changes the result and nothing else: no time, host, port, path or
retry.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import xxhash

from hdm.errors import DamagedError, HdmError, InputError, LockedError
from hdm.files import (
    TEMPORARY,
    aside_of,
    canonical_json,
    check_regular,
    explain_os_error,
    explain_read_error,
    fast_hash,
    hash_file,
    read_json,
    remove,
    sha256_file,
    sync,
    write_bytes,
    write_json,
    written_aside,
)
from hdm.provenance import provenance

MANIFEST = "manifest.json"
RUN = "run.json"
JOURNAL = ".journal.jsonl"
SCRATCH = ".scratch"
LOCK = ".lock"
PROBED_TRIES, PROBED_SEC = 10, 0.01
COPIES = ".copies"
HASHES = ".hashes.json"
USED = ".used"
DAMAGED = ".damaged"
RESUMING = (JOURNAL, COPIES, SCRATCH, LOCK)
"""Names that exist only while a draft is unfinished."""
VERIFY_BYTES = 1 << 30
# A file may change twice within one tick of the file system's clock, and the second change would
# leave the same modification time. A file modified this recently is therefore hashed again.
RACY_SEC = 0.1
ANOTHER_STORE = "choose another store with HDM_STORE or --store"

log = logging.getLogger(__name__)


def store_root(folder: Path | None = None) -> Path:
    """The absolute path of the given folder, else the environment's HDM_STORE, else ./store. It
    need not exist.

    Raises:
        InputError: it cannot be a folder: it is a file, is below one, links to itself, or has too
            long a name.
    """
    given = Path(folder or os.environ.get("HDM_STORE") or "store")
    try:
        root = given.resolve()
        # The nearest existing parent shows whether the folder can be made.
        there = next(place for place in (root, *root.parents) if place.exists())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links is a RuntimeError
        raise InputError(
            f"this cannot be a store: {error}", where=given, do=ANOTHER_STORE
        ) from error
    if not there.is_dir():
        raise InputError("the store is not a folder", where=there, do=ANOTHER_STORE)
    return root


def state_root(root: Path) -> Path:
    """Where runs write everything but outputs (databases of Prefect and MLflow, logs, reports):
    HDM_STATE, else the store itself.
    """
    return Path(os.environ.get("HDM_STATE") or root).resolve()


@dataclass(frozen=True)
class Identity:
    """What an output depends on.

    Args:
        name: output name, such as `filter` or `encode.64px`; also the folder in the store.
        schema: version of the code's output; increase it when equal inputs give a different
            output.
        config: the configuration fields that change the result, as plain JSON values.
        inputs: name of each input output → its digest.
        weights: component → sha256 of its weights.
    """

    name: str
    schema: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json(asdict(self))).hexdigest()[:16]


@dataclass(frozen=True)
class FileRecord:
    """One finished file: its name in the output's folder, size, hashes, and counts (rows, kept, …)
    for the totals.

    `xxh3` is compared whenever the file is used; None in manifests of releases before 0.2.
    `sha256` is for `hdm verify`.
    """

    name: str
    bytes: int
    sha256: str
    counts: Mapping[str, int]
    xxh3: str | None = None


@dataclass(frozen=True)
class Output:
    """A finished output. `counts` are sums over the files' counts; `summary` is the stage's
    description of the whole.
    """

    name: str
    digest: str
    path: Path
    files: tuple[FileRecord, ...]
    counts: Mapping[str, int]
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    schema: int
    weights: Mapping[str, str]

    @property
    def identity(self) -> Identity:
        """What it depends on."""
        return Identity(self.name, self.schema, self.config, self.inputs, self.weights)

    def file(self, name: str) -> Path:
        """The path of one of its files; KeyError if it has none of that name."""
        for record in self.files:
            if record.name == name:
                return self.path / name
        raise KeyError(f"{self.name}/{self.digest} has no file {name}")

    def counts_of(self, name: str) -> Mapping[str, int]:
        """The counts of one of its files; KeyError if it has none of that name."""
        for record in self.files:
            if record.name == name:
                return record.counts
        raise KeyError(f"{self.name}/{self.digest} has no file {name}")

    def paths(self, suffix: str = "") -> list[Path]:
        """The paths of its files whose names end with `suffix`, in order of name."""
        return [self.path / record.name for record in self.files if record.name.endswith(suffix)]

    def run(self) -> dict[str, Any]:
        """`run.json`: seconds spent, hosts, and what was measured during the work; {} if it was
        lost, since nothing depends on it.
        """
        return _read_run(self.path)


Outputs = Mapping[str, Output]
"""By name."""


class Store:
    """A folder of outputs.

    Args:
        root: the folder; made when first written to.
        verify_bytes: when an output is looked up, the contents of this many bytes are compared,
            small files first. Of other files, only name and size are; their contents are compared
            when they are read (`checked`, page checksums) and by `hdm verify`.
    """

    def __init__(self, root: Path, verify_bytes: int = VERIFY_BYTES) -> None:
        self.root = Path(root)
        self.verify_bytes = verify_bytes

    def folder(self, identity: Identity) -> Path:
        return self.root / identity.name / identity.digest

    def find(self, identity: Identity) -> Output | None:
        """The finished output of that identity, or None if it has to be made.

        A damaged file is set aside under `<name>.damaged`. If there is a copy, it is restored from
        that; otherwise the next draft makes that file again and keeps the others.

        Raises:
            InputError: a file cannot be read, or a path is blocked.
            HdmError: a damaged file cannot be set aside.
        """
        folder = self.folder(identity)
        try:
            output = _read_of(folder, identity)
            check_files(output, self.verify_bytes)
        except FileNotFoundError:
            # A copy of the manifest shows that the output was finished once.
            return self._mended(identity) if (folder / COPIES / MANIFEST).exists() else None
        except DamagedError as error:
            set_aside(folder, error)
            if isinstance(error, _AnotherOutputError):
                # The journal may have been copied here together with the other output's manifest.
                _forget_unsigned(folder)
            return self._mended(identity)
        _sweep(folder)
        return output

    def _mended(self, identity: Identity) -> Output | None:
        """The output restored from its copies; None if they are not enough, or another process
        works on it.
        """
        folder = self.folder(identity)
        with contextlib.suppress(FileNotFoundError, DamagedError, LockedError):
            manifest = _read_of(folder, identity, COPIES)
            with locked(folder / LOCK, f"{identity.name} {identity.digest}"):
                if not all(_restored(folder, record) for record in manifest.files):
                    return None
                _write_over(folder / MANIFEST, (folder / COPIES / MANIFEST).read_bytes())
            log.warning("%s %s is whole again", identity.name, identity.digest)
            return read_output(folder)
        return None

    def need(self, identity: Identity, asked_by: str) -> Output:
        """Like `find`, for an input that must exist.

        Raises:
            InputError: it does not.
        """
        output = self.find(identity)
        if output is None:
            stage = identity.name.split(".")[0]
            raise InputError(
                f"{asked_by} needs the output of {identity.name}, which is not in the store with"
                " these settings",
                where=self.folder(identity),
                do=f"run from an earlier stage: --from {stage}",
            )
        return output

    def manifests(self, name: str = "*") -> list[Path]:
        """The folders that hold a manifest, valid or not, in order of name and digest.

        Args:
            name: only of outputs of this name.
        """
        folders = []
        for path in sorted(self.root.glob(f"{name}/*/{MANIFEST}")):
            folder = path.parent
            # Set aside as damaged, or renamed by `hdm gc`, which is removing it.
            if folder.name.endswith(DAMAGED) or folder.name.startswith(TEMPORARY):
                continue
            folders.append(folder)
        return folders

    def outputs(self, name: str = "*") -> Iterator[Output]:
        """Every finished output. Damaged and unreadable ones are left out and logged.

        Args:
            name: only outputs of this name.
        """
        for folder in self.manifests(name):
            try:
                yield read_at_home(folder)
            except FileNotFoundError:
                continue  # removed since it was listed, for example by `hdm gc`
            except HdmError as error:
                log.warning("left out: %s (%s)", error.what, error.where)

    @contextlib.contextmanager
    def draft(self, identity: Identity) -> Iterator[Draft]:
        """Work on an unfinished output, under an exclusive lock. The draft already has the finished
        files of an interrupted run.

        Raises:
            LockedError: another process works on it; the error names its pid, host and start.
            HdmError: the folder cannot be written.
        """
        folder = self.folder(identity)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, folder) from error
        with locked(folder / LOCK, f"{identity.name} {identity.digest}"):
            yield Draft(identity, folder)


class Folder:
    """Writes files of one output: each file is complete and in the journal, or absent. Folders can
    be pickled, so that any process may write.

    Args:
        path: the output's folder.
        digest: the output's digest.

    `records` are the files that it wrote.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self.digest = digest
        self.records: dict[str, FileRecord] = {}

    @contextlib.contextmanager
    def write(
        self, name: str, *, copied: bool = False, needed_bytes: int | None = None
    ) -> Iterator[PendingFile]:
        """Write one file: the block writes to `.path` and fills `.counts`; at its end the file is
        complete and recorded.

        Several threads may use this at once for different names.

        Args:
            name: of the file, in the output's folder.
            copied: keep a copy from which a damaged file is restored: for small files that only a
                full rerun could make again.
            needed_bytes: the file's expected size, for the error on a full disk; None: unknown.
        """
        with written_aside(self.path / name, needed_bytes) as temporary:
            pending = PendingFile(temporary, {})
            yield pending
            # Before the journal's line, which promises this content.
            sync(temporary)
            hashes = hash_file(temporary)
            record = FileRecord(
                name, temporary.stat().st_size, hashes.sha256, dict(pending.counts), hashes.xxh3
            )
            if copied:
                _write_over(self.path / COPIES / name, temporary.read_bytes())
            line = {**asdict(record), "of": self.digest}
            # Before the rename: a file that is in place is always in the journal, and so can be
            # adopted or refused.
            _append_line(
                self.path / JOURNAL, canonical_json({**line, "line_xxh3": _line_hash(line)})
            )
        self.records[name] = record

    def share(self, name: str, twin: Path) -> None:
        """Let a finished file take no room of its own: it becomes a hard link of an equal file of
        another output. Where that is damaged, or the file system has no links, it stays as it is.

        Args:
            name: of the file, in the output's folder.
            twin: a file that should be equal.
        """
        linked = aside_of(self.path / name)
        with contextlib.suppress(OSError):
            os.link(twin, linked)
            # Compared once it is linked: the other output's name may lead elsewhere at any time.
            if fast_hash(linked) == self.records[name].xxh3:
                linked.replace(self.path / name)
                sync(self.path)
        # Also where both are one file already: renaming a file to another name of itself does
        # nothing.
        with contextlib.suppress(OSError):
            linked.unlink()

    def write_json(
        self,
        name: str,
        value: Any,
        counts: Mapping[str, int] | None = None,
        *,
        copied: bool = False,
    ) -> None:
        """Write one JSON file of the output."""
        data = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self.write(name, copied=copied, needed_bytes=len(data)) as file:
            file.path.write_bytes(data)
            file.counts.update(counts or {})


class Draft(Folder):
    """An output being written. Made by `Store.draft`.

    `figures` takes measurements of the work (rates, shares of time), which go to run.json.
    `records` are all files that are finished and intact; `lost` are the names of files that were
    finished once and are now damaged or missing.
    """

    def __init__(self, identity: Identity, folder: Path) -> None:
        super().__init__(folder, identity.digest)
        self.identity = identity
        self.started = time.time()
        self.clock = time.monotonic()
        self.figures: dict[str, float] = {}
        with _writing(folder):
            # A kill between writing a temporary file and renaming it leaves the temporary file,
            # also in a subfolder, as components have.
            for leftover in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(f"*/{TEMPORARY}*")):
                remove(leftover)
        _made_folder(folder / COPIES)
        # Adopt what an interrupted run finished, as far as it is intact.
        journal = {record.name: record for record in _read_journal(folder, identity.digest)}
        for record in journal.values():
            if _restored(folder, record):
                self.records[record.name] = record
        self.lost = journal.keys() - self.records.keys()

    @property
    def scratch(self) -> Path:
        """A folder for state that only resuming needs; the commit removes it."""
        return _made_folder(self.path / SCRATCH)

    def has(self, name: str) -> bool:
        """Whether that file is finished and intact, from this run or an earlier one."""
        return name in self.records

    def start_over(self) -> None:
        """Forget the finished files, so that the work writes every file again."""
        with _writing(self.path):
            remove(self.path / COPIES)
            remove(self.path / JOURNAL)
        self.records.clear()

    def counts(self) -> dict[str, int]:
        """The counts of the finished files, summed."""
        total: dict[str, int] = {}
        for record in self.records.values():
            for name, count in record.counts.items():
                total[name] = total.get(name, 0) + count
        return dict(sorted(total.items()))

    def commit(self, summary: Mapping[str, Any] | None = None) -> Output:
        """Finish the output: write the manifest last, then remove what only resuming needed."""
        # Sorted: parts finish in any order, but equal outputs have equal manifests.
        records = [asdict(self.records[name]) for name in sorted(self.records)]
        body = {
            **asdict(self.identity),
            "digest": self.identity.digest,
            "files": records,
            "summary": dict(summary or {}),
        }
        manifest = {**body, "manifest_sha256": hashlib.sha256(canonical_json(body)).hexdigest()}
        # Everything else first: the output exists as soon as its manifest does.
        self._log_run()
        data = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        _write_over(self.path / MANIFEST, data)
        _write_over(self.path / COPIES / MANIFEST, data)
        # Only once the manifest is in place: a kill in between leaves checkpoints, which `find`
        # removes.
        with _writing(self.path):
            remove(self.path / SCRATCH)
        return read_output(self.path)

    def publish(self, name: str, record: Any) -> None:
        """Finish a folder of `draft_in`: write the record last, then remove what only resuming
        needed.
        """
        write_json(self.path / name, record)
        self.forget()

    def forget(self) -> None:
        """Remove everything that only resuming needs."""
        with _writing(self.path):
            # The lock's file too: the folder is either finished by now, or removed next.
            for hidden in RESUMING:
                remove(self.path / hidden)

    @property
    def is_new(self) -> bool:
        """Whether there is nothing to resume from."""
        scratch = self.path / SCRATCH
        kept = scratch.is_dir() and any(scratch.iterdir())
        return not kept and not (self.path / JOURNAL).exists()

    def _log_run(self) -> None:
        seconds = time.monotonic() - self.clock
        # Several runs may have worked on the output: seconds add up, and each run is listed.
        earlier = _read_run(self.path)
        _clear_for_file(self.path / RUN)
        write_json(
            self.path / RUN,
            {
                "seconds": round(earlier.get("seconds", 0.0) + seconds, 3),
                "figures": {
                    **earlier.get("figures", {}),
                    **{name: round(value, 4) for name, value in self.figures.items()},
                },
                "runs": [
                    *earlier.get("runs", []),
                    {
                        "started": self.started,
                        "seconds": round(seconds, 3),
                        "host": socket.gethostname(),
                        **provenance(),
                    },
                ],
            },
        )


@contextlib.contextmanager
def draft_in(folder: Path, identity: Identity, record: str) -> Iterator[Draft]:
    """Work under an exclusive lock on a folder outside every store, which is new or holds such work
    unfinished. `Draft.publish` finishes it. If none of the work is kept, the folder is removed.

    Args:
        folder: of the result.
        identity: of the work.
        record: the file that is written last.

    Raises:
        InputError: the folder holds something else, or is finished.
        LockedError: another process works there; the error names its pid, host and start.
        HdmError: the folder cannot be written.
    """
    begun = any(os.path.lexists(folder / hidden) for hidden in RESUMING)
    other = folder.exists() and not begun and any(folder.iterdir())
    if other or (folder / record).exists():
        raise InputError(
            "the folder holds something already", where=folder, do="name a new one with --out"
        )
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    what = "wait for it, or name a new folder with --out"
    with locked(folder / LOCK, str(folder), do=what):
        draft = Draft(identity, folder)
        try:
            yield draft
        finally:
            # Leave no folder behind in which nothing was begun.
            if draft.is_new and not (folder / record).exists():
                draft.forget()
                with contextlib.suppress(OSError):
                    folder.rmdir()


@dataclass(frozen=True)
class PendingFile:
    path: Path
    counts: dict[str, int]


def read_output(folder: Path) -> Output:
    """Read and check a manifest; its folder may have been copied or renamed.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is not what was written.
        InputError: it cannot be read.
    """
    return _read_manifest(folder / MANIFEST, folder)


def read_at_home(folder: Path) -> Output:
    """Read and check a manifest inside a store, where the path must match the output's name and
    digest.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is not what was written, or another output's.
        InputError: it cannot be read.
    """
    output = read_output(folder)
    _check_name(output, folder.parent.name, folder.name, folder / MANIFEST)
    return output


def _read_of(folder: Path, identity: Identity, place: str = ".") -> Output:
    """The output of an identity, from the manifest in its folder or in its folder of copies."""
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            raise DamagedError("not a folder", where=folder, do="run the same command again")
    except OSError as error:
        raise explain_read_error(error, folder) from error
    path = folder / place / MANIFEST
    output = _read_manifest(path, folder)
    _check_name(output, identity.name, identity.digest, path)
    return output


class _AnotherOutputError(DamagedError):
    """An intact manifest in the wrong folder."""


def _check_name(output: Output, name: str, digest: str, path: Path) -> None:
    if (output.name, output.digest) != (name, digest):
        raise _AnotherOutputError(
            f"the manifest of another output, {output.name} {output.digest}, is in its place",
            where=path,
            do="run the same command again: it is made anew",
        )


def _read_manifest(path: Path, folder: Path) -> Output:
    try:
        check_regular(path)
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise explain_read_error(error, path) from error
    try:
        manifest = read_json(data)
        # The manifest's own hash, then the digest of what it says that it depends on.
        recorded = manifest.pop("manifest_sha256")
        if hashlib.sha256(canonical_json(manifest)).hexdigest() != recorded:
            raise ValueError("its hash does not hold")
        identity = Identity(**{field.name: manifest[field.name] for field in fields(Identity)})
        if identity.digest != manifest["digest"]:
            raise ValueError("its digest is not that of what it depends on")
        files = tuple(FileRecord(**record) for record in manifest["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"a manifest is damaged: {error}",
            where=path,
            do="run the same command again: it is made anew",
        ) from error
    counts: dict[str, int] = {}
    for record in files:
        for name, count in record.counts.items():
            counts[name] = counts.get(name, 0) + count
    return Output(
        name=identity.name,
        digest=identity.digest,
        path=folder,
        files=files,
        counts=dict(sorted(counts.items())),
        summary=manifest["summary"],
        config=identity.config,
        inputs=identity.inputs,
        schema=identity.schema,
        weights=identity.weights,
    )


def check_files(output: Output, verify_bytes: int | None = None) -> None:
    """Check the names and sizes of an output's files, and the contents of `verify_bytes` of them,
    small files first (None: of all).

    Raises:
        DamagedError: naming the first file that is not what was written.
        InputError: a file cannot be read.
    """
    budget = float("inf") if verify_bytes is None else verify_bytes
    for record in sorted(output.files, key=lambda record: record.bytes):
        budget -= record.bytes
        if not _holds(output.path, record, content=budget >= 0):
            raise _damage(output.path / record.name)


def checked(path: Path) -> Path:
    """The path of a file that is about to be used. If the file belongs to an output, its contents
    are compared with the manifest's hash, once per process unless the file changes.

    Raises:
        DamagedError: it is not what was written.
        InputError: it cannot be read.
    """
    # A file of an output lies in the output's folder or one level below.
    with contextlib.suppress(FileNotFoundError, StopIteration):
        output = next(read_output(folder) for folder in path.parents[:2] if _is_output(folder))
        name = path.relative_to(output.path).as_posix()
        record = next(record for record in output.files if record.name == name)
        if not _holds(output.path, record, content=True):
            raise _damage(path)
    return path


def _is_output(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def proven(folder: Path, record: FileRecord, advance: Callable[[int], object]) -> bool:
    """Whether a file's size and sha256 are the recorded ones.

    Args:
        folder: of the output.
        record: of the file.
        advance: called with the number of bytes of each piece that was read.

    Raises:
        InputError: it may not be read.
    """
    path = folder / record.name
    try:
        return path.stat().st_size == record.bytes and sha256_file(path, advance) == record.sha256
    except OSError as error:
        return _refused(error, path)


def _damage(path: Path) -> DamagedError:
    return DamagedError(
        "a file is not what was written",
        where=path,
        do="run the same command again: it is made anew",
    )


def set_aside(folder: Path, damage: DamagedError) -> None:
    """Rename what is damaged and log it. If that is a file of an output, its manifest moves to the
    copies, because the output is no longer complete.

    Raises:
        HdmError: it cannot be moved.
    """
    damaged = Path(str(damage.where))
    _move_aside(damaged, damage.what)
    manifest = folder / MANIFEST
    inside = Path(os.path.realpath(damaged.parent)).is_relative_to(os.path.realpath(folder))
    if damaged.name != MANIFEST and inside and manifest.exists():
        copy = _made_folder(folder / COPIES) / MANIFEST
        _clear_for_file(copy)
        with _writing(manifest):
            manifest.replace(copy)
            sync(folder)


def _move_aside(path: Path, why: str) -> None:
    target = path.with_name(path.name + DAMAGED)
    if not os.path.lexists(path):
        log.warning("%s: %s; it is not there", path, why)
        return
    with _writing(path):
        remove(target)
        path.replace(target)
        sync(path.parent)
    log.warning("%s: %s; set aside as %s", path, why, target.name)


def _made_folder(path: Path) -> Path:
    """The folder, created if need be; anything else at its path is set aside."""
    if os.path.lexists(path) and not path.is_dir():
        _move_aside(path, "not a folder")
    with _writing(path):
        path.mkdir(exist_ok=True)
    return path


def _clear_for_file(path: Path) -> None:
    """Set aside a folder, a pipe or a dangling link at a path where a file will be written."""
    if os.path.lexists(path) and not path.is_file():
        _move_aside(path, "not a file")


def _write_over(path: Path, data: bytes) -> None:
    _clear_for_file(path)
    write_bytes(path, data)


def _restored(folder: Path, record: FileRecord) -> bool:
    """Whether a file is what was written, after restoring it from its copy if there is one.
    Anything that blocks its path is set aside.
    """
    if _holds(folder, record, content=True):
        return True
    path = folder / record.name
    if _holds(folder / COPIES, record, content=True):
        if os.path.lexists(path):
            _move_aside(path, "a file is not what was written")
        write_bytes(path, (folder / COPIES / record.name).read_bytes())
        log.warning("%s is back from its copy", path)
        return True
    _clear_for_file(path)
    return False


def _sweep(folder: Path) -> None:
    """Remove what a kill between the manifest and the clean-up left: checkpoints take gigabytes."""
    names: list[str] = []
    # The folder may belong to another user, who permits reading its files but not listing them.
    with contextlib.suppress(PermissionError):
        names = [path.name for path in folder.iterdir()]
    leftovers = [name for name in names if name == SCRATCH or name.startswith(TEMPORARY)]
    if not leftovers:
        return
    # Without write permission the owner's next run cleans up; a run that holds the lock cleans up
    # itself.
    with contextlib.suppress(HdmError, OSError), locked(folder / LOCK, folder.name):
        for name in leftovers:
            remove(folder / name)
        log.info("%s: removed %s of a run that was killed", folder, ", ".join(leftovers))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, path) from error


@contextlib.contextmanager
def locked(
    path: Path,
    what: str,
    shared: bool = False,
    do: str = "wait for it or stop it (hdm stop)",
) -> Iterator[None]:
    """Hold a lock that dies with its process.

    Args:
        path: its file.
        what: what it protects, for the error message.
        shared: others may hold it too, if theirs is shared.
        do: advice in the error message.

    Raises:
        LockedError: another process holds it; the error names pid, host and start.
        HdmError: its file cannot be written.
    """
    _clear_for_file(path)
    # Append mode: opening must not erase what the holder wrote.
    with _writing(path):
        file = path.open("a+")
    with file:
        try:
            # The kernel releases it however the process ends, so a reused pid cannot make a lock
            # look held.
            _take_lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except BlockingIOError as error:
            file.seek(0)
            raise LockedError(
                f"another run works on {what}: {file.read().strip() or 'just started'}",
                where=path,
                do=do,
            ) from error
        if not shared:
            # For the message of those who find it locked; the lock itself is the kernel's.
            file.truncate(0)
            file.write(
                f"pid {os.getpid()} on {socket.gethostname()} since"
                f" {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            )
            file.flush()
        yield


def _take_lock(file: IO[str], kind: int) -> None:
    # Whoever asks `is_locked` holds it for a moment, which must not look like another run.
    for _ in range(PROBED_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        time.sleep(PROBED_SEC)
    fcntl.flock(file, kind | fcntl.LOCK_NB)


@contextlib.contextmanager
def in_use(folders: Iterable[Path]) -> Iterator[None]:
    """Record that outputs are in use now, and keep `hdm gc` from removing them during the block.
    Outputs where this user cannot write are skipped.

    Raises:
        LockedError: one is being removed.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            # Where this user cannot write, nothing is recorded.
            with contextlib.suppress(HdmError):
                path = folder / USED
                _clear_for_file(path)
                with _writing(path):
                    # `hdm gc` takes this time for the last use.
                    path.touch()
            stack.enter_context(held(folder))
        yield


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep `hdm gc` from removing an output during the block. Unlike `in_use`, it does not count as
    a use for which the output is kept afterwards.

    Raises:
        LockedError: it is being removed.
    """
    with contextlib.ExitStack() as stack:
        try:
            what = f"{folder} (it is being removed)"
            stack.enter_context(locked(folder / USED, what, shared=True))
        except LockedError:
            raise
        except HdmError:
            pass  # another user's output: its owner can remove it in any case
        yield


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Hold a lock exclusively without changing its file; without the file, there is nothing to
    hold.

    Raises:
        LockedError: another process holds it.
        InputError: the file cannot be read.
    """
    if not path.is_file():
        yield
        return
    try:
        # Reading permission is enough for an exclusive lock.
        file = path.open("rb")
    except OSError as error:
        raise explain_read_error(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError("in use", where=path) from error
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock on that file. Nothing is written, so read permission is
    enough.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe in the file's place would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return _refused(error, path)  # anything but a file is not locked
    try:
        # Shared, so that two processes that ask do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / RUN
    try:
        check_regular(path)
        found = read_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    kinds: dict[str, Any] = {"seconds": (int, float), "figures": dict, "runs": list}
    if not isinstance(found, dict):
        return {}
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            return {}
    return found


# Files whose content this process has compared already: sha256, device, inode and times of change.
_held: set[tuple[str, int, int, int, int]] = set()


def _holds(folder: Path, record: FileRecord, content: bool) -> bool:
    """Whether a file exists with the recorded size and, if asked, content.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / record.name
    try:
        state = path.stat()
        check_regular(path)
        if state.st_size != record.bytes:
            return False
        # With the time of the inode's change, which no tool can set back as it can the other.
        key = (record.sha256, state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
        if not content or key in _held:
            return True
        whole = _content_holds(folder, record)
        if whole and time.time() - state.st_mtime > RACY_SEC:
            _held.add(key)
        return whole
    except OSError as error:
        return _refused(error, path)


def _refused(error: OSError, path: Path) -> bool:
    """False if the error means that the file is not what was written; any other error is raised."""
    explained = explain_read_error(error, path)
    if isinstance(explained, DamagedError):
        return False
    raise explained from error


def _content_holds(folder: Path, record: FileRecord) -> bool:
    path = folder / record.name
    fast = record.xxh3
    if fast is not None:
        return fast_hash(path) == fast
    known = _read_hashes(folder)
    if record.sha256 in known and fast_hash(path) == known[record.sha256]:
        return True
    found = hash_file(path)
    if found.sha256 != record.sha256:
        return False
    # In another user's store the hash cannot be saved, so the next process computes it again.
    with contextlib.suppress(HdmError):
        write_json(folder / HASHES, {**known, found.sha256: found.xxh3})
    return True


def _read_hashes(folder: Path) -> dict[str, str]:
    """sha256 → XXH3 of files that were once found intact; {} if the record was lost, and the files
    are hashed again.
    """
    try:
        return dict(read_json((folder / HASHES).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _append_line(path: Path, line: bytes) -> None:
    with _writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            # One write, so that lines of several processes do not mix. It begins with a newline: a
            # torn last line of a killed run must not swallow this one.
            os.write(descriptor, b"\n" + line + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _journal_lines(folder: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    path = folder / JOURNAL
    try:
        check_regular(path)
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        _refused(error, path)
        if os.path.lexists(path):
            _move_aside(path, "not a file that can be read")
        return
    for line in lines:
        # A line that is empty or torn by a kill is skipped, and its file is made again.
        with contextlib.suppress(ValueError):
            yield line, read_json(line)


def _line_hash(line: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(canonical_json(line))


def _read_journal(folder: Path, digest: str) -> Iterator[FileRecord]:
    """The journal's records of that output. A damaged line is skipped and its file made again,
    because counts and sha256 are recorded nowhere else.
    """
    for _, values in _journal_lines(folder):
        with contextlib.suppress(TypeError, AttributeError, ValueError):
            written = values.pop("line_xxh3", None)  # None: of a release before 0.2
            if written is not None and _line_hash(values) != written:
                continue
            if values.pop("of", digest) == digest:
                yield FileRecord(**values)


def _forget_unsigned(folder: Path) -> None:
    """Drop the journal's lines that do not name their output: they may have come with another
    output's manifest.
    """
    lines = list(_journal_lines(folder))
    kept = [line for line, values in lines if isinstance(values, dict) and "of" in values]
    if len(kept) < len(lines):
        write_bytes(folder / JOURNAL, b"\n".join([*kept, b""]))
