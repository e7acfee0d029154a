"""The store: outputs named by what they depend on, written so that resuming is true.

    <store>/<output name>/<digest>/      one output, e.g. store/encode.64px/3f2a…/
        manifest.json     written last; the output exists if and only if its manifest does and holds
        <files>           shards, tables, weights
        run.json          times, rates, code and machines of the runs that made it; in no digest
        .journal.jsonl    one line a finished file, so that a restart adopts it
        .copies/          the manifest, and small files that only all the work would make again
        .scratch/         state for resuming (training checkpoints); gone after the commit
        .used             when a run last made or found it; locked while a run reads it
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
from typing import Any

import xxhash

from hdm.errors import DamagedError, HdmError, InputError, LockedError
from hdm.files import (
    TEMPORARY,
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
COPIES = ".copies"
HASHES = ".hashes.json"
USED = ".used"
DAMAGED = ".damaged"
RESUMING = (JOURNAL, COPIES, SCRATCH, LOCK)
"""What is there only while a draft is unfinished."""
VERIFY_BYTES = 1 << 30
RACY_SEC = 0.1  # a file changed so lately may be changed again without its time of change telling
ANOTHER_STORE = "choose another store with HDM_STORE or --store"

log = logging.getLogger(__name__)


def store_root(folder: Path | None = None) -> Path:
    """The given folder, else the environment's HDM_STORE, else ./store; absolute. It need not be
    there.

    Raises:
        InputError: it cannot be a folder: it is a file, or below one, or a link to itself, or too
            long.
    """
    given = Path(folder or os.environ.get("HDM_STORE") or "store")
    try:
        root = given.resolve()
        there = next(place for place in (root, *root.parents) if place.exists())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links is a RuntimeError
        raise InputError(
            f"this cannot be a store: {error}", where=given, do=ANOTHER_STORE
        ) from error
    if not there.is_dir():
        raise InputError("the store is not a folder", where=there, do=ANOTHER_STORE)
    return root


def state_root(root: Path) -> Path:
    """Where runs write what is no output (databases of Prefect and MLflow, logs, reports):
    HDM_STATE, else the store itself.
    """
    return Path(os.environ.get("HDM_STATE") or root).resolve()


@dataclass(frozen=True)
class Identity:
    """What an output depends on.

    Args:
        name: output name, as `filter` or `encode.64px`; also the folder in the store.
        schema: version of the code's output format; raise it when the same inputs give another
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

    `xxh3` is what is compared whenever the file is used; None in manifests of releases before 0.2.
    `sha256` is for `hdm verify`.
    """

    name: str
    bytes: int
    sha256: str
    counts: Mapping[str, int]
    xxh3: str | None = None


@dataclass(frozen=True)
class Output:
    """A finished output. `counts` are the files' counts summed; `summary` is what the stage says of
    the whole.
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
        if all(record.name != name for record in self.files):
            raise KeyError(f"{self.name}/{self.digest} has no file {name}")
        return self.path / name

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
        """`run.json`: seconds spent, hosts, and what was measured meanwhile; {} if it was lost
        (nothing depends on it).
        """
        return _read_run(self.path)


Outputs = Mapping[str, Output]
"""By name."""


class Store:
    """A folder of outputs.

    Args:
        root: the folder; made when first written to.
        verify_bytes: contents up to this many bytes an output are compared when it is looked up,
            small files first; beyond it, names and sizes are, and contents when they are read
            (`checked`, page checksums) and by `hdm verify`.
    """

    def __init__(self, root: Path, verify_bytes: int = VERIFY_BYTES) -> None:
        self.root = Path(root)
        self.verify_bytes = verify_bytes

    def folder(self, identity: Identity) -> Path:
        return self.root / identity.name / identity.digest

    def find(self, identity: Identity) -> Output | None:
        """The finished output of that identity, or None if it has to be made.

        A damaged file is set aside under `<name>.damaged`. If a copy of it was kept, the output is
        whole again; if not, the next draft makes that file anew and keeps the rest.

        Raises:
            InputError: something may not be read, or is in the way.
            HdmError: something is damaged, and cannot be set aside.
        """
        folder = self.folder(identity)
        try:
            output = _read_of(folder, identity)
            check_files(output, self.verify_bytes)
        except FileNotFoundError:
            return self._mended(identity) if (folder / COPIES / MANIFEST).exists() else None
        except DamagedError as error:
            set_aside(folder, error)
            if isinstance(error, _AnotherOutputError):
                _forget_unsigned(folder)
            return self._mended(identity)
        _sweep(folder)
        return output

    def _mended(self, identity: Identity) -> Output | None:
        """The output from its copies: None if they are not enough, or another process works on
        it.
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
        """Like `find`, for an input that must be there.

        Raises:
            InputError: it is not.
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

    def manifests(self) -> list[Path]:
        """The folders that hold a manifest, whole or not, in order of name and digest."""
        found = sorted(self.root.glob(f"*/*/{MANIFEST}"))
        names = [(path.parent, path.parent.name) for path in found]
        return [
            folder
            for folder, name in names
            if not name.endswith(DAMAGED) and not name.startswith(TEMPORARY)
        ]

    def outputs(self) -> Iterator[Output]:
        """Every finished output. What is left out, damaged or unreadable, is logged."""
        for folder in self.manifests():
            try:
                yield read_at_home(folder)
            except FileNotFoundError:
                continue  # removed just now
            except HdmError as error:
                log.warning("left out: %s (%s)", error.what, error.where)

    @contextlib.contextmanager
    def draft(self, identity: Identity) -> Iterator[Draft]:
        """Work on an output that is not finished, alone: files of an interrupted run are there
        already.

        Raises:
            LockedError: another process works on it; its pid, host and start are named.
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
    """Writes files of one output: each is whole and in the journal, or absent. It can be pickled,
    so that any process may write.

    Args:
        path: the output's folder.
        digest: the output's.

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
        whole and recorded.

        Safe to use from several threads for different names.

        Args:
            name: of the file, in the output's folder.
            copied: keep a copy from which the file is mended: for small files that only the whole
                work would make again.
            needed_bytes: how large it will be, to say on a full disk; None: not known.
        """
        with written_aside(self.path / name, needed_bytes) as temporary:
            pending = PendingFile(temporary, {})
            yield pending
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

    `figures` may be filled with what was measured of the making (rates, shares of time): they go to
    run.json. `records` are all files that are finished and whole, `lost` those that were finished
    once and do not hold any longer.
    """

    def __init__(self, identity: Identity, folder: Path) -> None:
        super().__init__(folder, identity.digest)
        self.identity = identity
        self.started = time.time()
        self.clock = time.monotonic()
        self.figures: dict[str, float] = {}
        with _writing(folder):
            for leftover in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(f"*/{TEMPORARY}*")):
                remove(leftover)
        _made_folder(folder / COPIES)
        journal = {record.name: record for record in _read_journal(folder, identity.digest)}
        for record in journal.values():
            if _restored(folder, record):
                self.records[record.name] = record
        self.lost = journal.keys() - self.records.keys()

    @property
    def scratch(self) -> Path:
        """A folder for state that only resuming needs; removed at the commit."""
        return _made_folder(self.path / SCRATCH)

    def has(self, name: str) -> bool:
        """Whether that file is finished and whole, from this run or one before it."""
        return name in self.records

    def start_over(self) -> None:
        """Forget what was finished: the work begins anew and writes every file again."""
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
        """Finish the output: the manifest is written last, then what only resuming needed is
        removed.
        """
        records = [asdict(self.records[name]) for name in sorted(self.records)]
        body = {
            **asdict(self.identity),
            "digest": self.identity.digest,
            "files": records,
            "summary": dict(summary or {}),
        }
        manifest = {**body, "manifest_sha256": hashlib.sha256(canonical_json(body)).hexdigest()}
        self._log_run()
        data = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        _write_over(self.path / MANIFEST, data)
        _write_over(self.path / COPIES / MANIFEST, data)
        with _writing(self.path):
            remove(self.path / SCRATCH)
        return read_output(self.path)

    def publish(self, name: str, record: Any) -> None:
        """Finish a folder of `draft_in`: the record is written last, then what only resuming needed
        is removed.
        """
        write_json(self.path / name, record)
        self.forget()

    def forget(self) -> None:
        """Remove everything that only resuming needs."""
        with _writing(self.path):
            for hidden in RESUMING:
                remove(self.path / hidden)

    @property
    def is_new(self) -> bool:
        """Whether nothing is there to go on from."""
        scratch = self.path / SCRATCH
        kept = scratch.is_dir() and any(scratch.iterdir())
        return not kept and not (self.path / JOURNAL).exists()

    def _log_run(self) -> None:
        seconds = time.monotonic() - self.clock
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
    """Work alone on a folder outside every store, new or with such work unfinished;
    `Draft.publish` finishes it. If nothing is kept of the work, the folder is removed.

    Args:
        folder: of the result.
        identity: of the work.
        record: the file that is written last.

    Raises:
        InputError: the folder holds something else, or is finished.
        LockedError: another process works there; its pid, host and start are named.
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
        InputError: it may not be read.
    """
    return _read_manifest(folder / MANIFEST, folder)


def read_at_home(folder: Path) -> Output:
    """Read and check a manifest of a store, where the folder's names say which output it has to be.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is not what was written, or another output's.
        InputError: it may not be read.
    """
    output = read_output(folder)
    _check_name(output, folder.parent.name, folder.name, folder / MANIFEST)
    return output


def _read_of(folder: Path, identity: Identity, place: str = ".") -> Output:
    """The output of an identity, by the manifest in its folder or in the folder of copies there."""
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
    """A manifest that is whole, in the wrong folder."""


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
        InputError: a file may not be read.
    """
    budget = float("inf") if verify_bytes is None else verify_bytes
    for record in sorted(output.files, key=lambda record: record.bytes):
        budget -= record.bytes
        if not _holds(output.path, record, content=budget >= 0):
            raise _damage(output.path / record.name)


def checked(path: Path) -> Path:
    """A file that is about to be used: if it belongs to an output, its contents are compared with
    the manifest's hash first.

    Once in a process is enough for a file that did not change since.

    Raises:
        DamagedError: it is not what was written.
        InputError: it may not be read.
    """
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
    """Move what is damaged out of the way, saying so; where that is a file, the manifest that
    vouches for it goes to the copies.

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
    """The folder, made if need be; what stands in its place is set aside."""
    if os.path.lexists(path) and not path.is_dir():
        _move_aside(path, "not a folder")
    with _writing(path):
        path.mkdir(exist_ok=True)
    return path


def _clear_for_file(path: Path) -> None:
    """Set aside a folder, a pipe, or a link that leads nowhere, where a file is going to be
    written.
    """
    if os.path.lexists(path) and not path.is_file():
        _move_aside(path, "not a file")


def _write_over(path: Path, data: bytes) -> None:
    _clear_for_file(path)
    write_bytes(path, data)


def _restored(folder: Path, record: FileRecord) -> bool:
    """Whether a file is what was written, perhaps by now: from its copy. What stands in the way of
    writing it is set aside.
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
    # Another user's, who lets files be read but not listed.
    with contextlib.suppress(PermissionError):
        names = [path.name for path in folder.iterdir()]
    leftovers = [name for name in names if name == SCRATCH or name.startswith(TEMPORARY)]
    if not leftovers:
        return
    # Whoever may not write here leaves it to the owner; whoever works here cleans up at the end.
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
        what: it is held for.
        shared: others may hold it too, if they share it.
        do: advice to those who do not get it.

    Raises:
        LockedError: somebody else holds it; pid, host and start are named.
        HdmError: its file cannot be written.
    """
    _clear_for_file(path)
    with _writing(path):
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LockedError(
                f"another run works on {what}: {file.read().strip() or 'just started'}",
                where=path,
                do=do,
            ) from error
        if not shared:
            file.truncate(0)
            file.write(
                f"pid {os.getpid()} on {socket.gethostname()} since"
                f" {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            )
            file.flush()
        yield


@contextlib.contextmanager
def in_use(folders: Iterable[Path]) -> Iterator[None]:
    """Write down that outputs are used now, and keep `hdm gc` off them in the block, where this
    user may write there.

    Raises:
        LockedError: one is being removed.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            path = folder / USED
            try:
                _clear_for_file(path)
                with _writing(path):
                    path.touch()
                stack.enter_context(locked(path, f"{folder} (it is being removed)", shared=True))
            except LockedError:
                raise
            except HdmError:
                continue  # of another user, who may remove it whatever we do
        yield


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Hold a lock against everybody else, without changing its file; nothing to hold where it is
    not there.

    Raises:
        LockedError: somebody else holds it.
        InputError: the file may not be read.
    """
    if not path.is_file():
        yield
        return
    try:
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
    """Whether a process holds a lock of that file; asked without writing, so that anybody may.

    Raises:
        InputError: the file may not be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return _refused(error, path)  # what is no file is no lock
    try:
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
    whole = isinstance(found, dict) and all(
        isinstance(found.get(name), kind) for name, kind in kinds.items()
    )
    return found if whole else {}


_held: set[tuple[str, int, int, int, int]] = set()


def _holds(folder: Path, record: FileRecord, content: bool) -> bool:
    """Whether a file is there and has the recorded size and, if asked, content.

    Raises:
        InputError: it may not be read.
    """
    path = folder / record.name
    try:
        state = path.stat()
        check_regular(path)
        if state.st_size != record.bytes:
            return False
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
    """False for a file that is not what was written; anything else that keeps it from being read is
    raised.
    """
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
    # In a store of somebody else's it cannot be remembered, and is hashed again by the next
    # process.
    with contextlib.suppress(HdmError):
        write_json(folder / HASHES, {**known, found.sha256: found.xxh3})
    return True


def _read_hashes(folder: Path) -> dict[str, str]:
    """sha256 → XXH3 of files that were once found to be whole; {} if it was lost (they are hashed
    again).
    """
    try:
        return dict(read_json((folder / HASHES).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _append_line(path: Path, line: bytes) -> None:
    with _writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            # A torn last line of a killed run must not swallow this one.
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
        # Empty, or torn by a kill: its file is then made again.
        with contextlib.suppress(ValueError):
            yield line, read_json(line)


def _line_hash(line: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(canonical_json(line))


def _read_journal(folder: Path, digest: str) -> Iterator[FileRecord]:
    """The records of that output. A damaged line is skipped, and its file made again: counts and
    sha256 are in no other place.
    """
    for _, values in _journal_lines(folder):
        with contextlib.suppress(TypeError, AttributeError, ValueError):
            written = values.pop("line_xxh3", None)  # None: of a release before 0.2
            if written is not None and _line_hash(values) != written:
                continue
            if values.pop("of", digest) == digest:
                yield FileRecord(**values)


def _forget_unsigned(folder: Path) -> None:
    """Forget the files of a journal that do not say whose they are: they may have come with another
    output's manifest.
    """
    lines = list(_journal_lines(folder))
    kept = [line for line, values in lines if isinstance(values, dict) and "of" in values]
    if len(kept) < len(lines):
        write_bytes(folder / JOURNAL, b"\n".join([*kept, b""]))
