"""The store: outputs named by what they depend on, written so that resuming is true.

    <store>/<output name>/<digest>/      one output, e.g. store/encode.64px/3f2a…/
        manifest.json                    written last; the output exists if and only if it is there and holds
        <files>                          shards, tables, weights
        run.json                         times, hosts and rates of the runs that made it; outside every digest
        .journal.jsonl                   one line a finished file, so that a restart adopts it
        .scratch/                        state for resuming (training checkpoints); gone after the commit

A digest covers everything that changes the result and nothing else: no time, host, port, path or retry.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hdm.errors import DamagedError, InputError, LockedError
from hdm.files import (
    TEMPORARY,
    canonical_json,
    sha256_file,
    sync,
    write_bytes,
    write_json,
    written_aside,
)

MANIFEST, RUN, JOURNAL, SCRATCH, LOCK = (
    "manifest.json",
    "run.json",
    ".journal.jsonl",
    ".scratch",
    ".lock",
)
VERIFY_BYTES = 1 << 30
ANOTHER_STORE = "choose another store with HDM_STORE or --store"

log = logging.getLogger(__name__)


def store_root(folder: Path | None = None) -> Path:
    """The given folder, else the environment's HDM_STORE, else ./store; absolute. It need not be there.

    Raises:
        InputError: it cannot be a folder: it is a file, or below one, or a link to itself, or too long.
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


@dataclass(frozen=True)
class Identity:
    """What an output depends on.

    Args:
        name: output name, as `filter` or `encode.64px`; also the folder in the store.
        schema: version of the code's output format; raise it when the same inputs give another output.
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
    """One finished file: its name in the output's folder, size, sha256, and counts (rows, kept, …) for the totals."""

    name: str
    bytes: int
    sha256: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Output:
    """A finished output. `counts` are the files' counts summed; `summary` is what the stage says of the whole."""

    name: str
    digest: str
    path: Path
    files: tuple[FileRecord, ...]
    counts: Mapping[str, int]
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    inputs: Mapping[str, str]

    def file(self, name: str) -> Path:
        """The path of one of its files; KeyError if it has none of that name."""
        if all(record.name != name for record in self.files):
            raise KeyError(f"{self.name}/{self.digest} has no file {name}")
        return self.path / name

    def paths(self, suffix: str = "") -> list[Path]:
        """The paths of its files whose names end with `suffix`, in order of name."""
        return [self.path / record.name for record in self.files if record.name.endswith(suffix)]

    def run(self) -> dict[str, Any]:
        """`run.json`: seconds spent, hosts, and what was measured meanwhile; {} if it was lost (nothing depends on it)."""
        return _read_run(self.path)


class Store:
    """A folder of outputs.

    Args:
        root: the folder; made when first written to.
        verify_bytes: contents up to this many bytes an output are rehashed when it is looked up; beyond it, names and sizes
            are checked then, and contents when first read (page checksums) and by `hdm verify`.
    """

    def __init__(self, root: Path, verify_bytes: int = VERIFY_BYTES) -> None:
        self.root, self.verify_bytes = Path(root), verify_bytes
        self._rehashed: set[Path] = set()

    def folder(self, identity: Identity) -> Path:
        return self.root / identity.name / identity.digest

    def find(self, identity: Identity) -> Output | None:
        """The finished output of that identity, or None if it has to be made.

        A damaged file is set aside under `<name>.damaged`, so that the next draft makes it anew and keeps the rest.
        """
        folder = self.folder(identity)
        try:
            output = read_output(folder)
            # Once in a process is enough: later readers meet the page checksums.
            check_files(output, 0 if folder in self._rehashed else self.verify_bytes)
            self._rehashed.add(folder)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            set_aside(folder, error)
            self._rehashed.discard(folder)
            return None
        return output

    def need(self, identity: Identity, asked_by: str) -> Output:
        """Like `find`, for an input that must be there.

        Raises:
            InputError: it is not.
        """
        output = self.find(identity)
        if output is None:
            stage = identity.name.split(".")[0]
            raise InputError(
                f"{asked_by} needs the output of {identity.name}, which is not in the store with these settings",
                where=self.folder(identity),
                do=f"run from an earlier stage: --from {stage}",
            )
        return output

    def outputs(self) -> Iterator[Output]:
        """Every output with a manifest, damaged ones left out."""
        for manifest in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            with contextlib.suppress(DamagedError, FileNotFoundError):
                yield read_output(manifest.parent)

    @contextlib.contextmanager
    def draft(self, identity: Identity) -> Iterator[Draft]:
        """Work on an output that is not finished, alone: files of an interrupted run are there already.

        Raises:
            LockedError: another process works on it; its pid, host and start are named.
        """
        folder = self.folder(identity)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK, f"{identity.name} {identity.digest}"):
            yield Draft(identity, folder)


class Draft:
    """An output being written. Made by `Store.draft`.

    `figures` may be filled with what was measured of the making (rates, shares of time): they go to run.json.
    """

    def __init__(self, identity: Identity, folder: Path) -> None:
        self.identity, self.path = identity, folder
        self.started, self.clock = time.time(), time.monotonic()
        self.figures: dict[str, float] = {}
        for leftover in folder.glob(f"{TEMPORARY}*"):
            leftover.unlink()
        self.records = {
            record.name: record
            for record in _read_journal(folder)
            if _holds(folder, record, content=True)
        }

    @property
    def scratch(self) -> Path:
        """A folder for state that only resuming needs; removed at the commit."""
        path = self.path / SCRATCH
        path.mkdir(exist_ok=True)
        return path

    def has(self, name: str) -> bool:
        """Whether that file is finished and whole, from this run or one before it."""
        return name in self.records

    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[PendingFile]:
        """Write one file: the block writes to `.path` and fills `.counts`; at its end the file is whole and recorded.

        Safe to use from several threads for different names.
        """
        with written_aside(self.path / name) as temporary:
            pending = PendingFile(temporary, {})
            yield pending
            sync(temporary)
            record = FileRecord(
                name, temporary.stat().st_size, sha256_file(temporary), dict(pending.counts)
            )
            # Before the rename: a file that is in place is always in the journal, and so can be adopted or refused.
            _append_line(self.path / JOURNAL, canonical_json(asdict(record)))
        self.records[name] = record

    def write_json(self, name: str, value: Any, counts: Mapping[str, int] | None = None) -> None:
        """Write one JSON file of the output."""
        with self.write(name) as file:
            file.path.write_bytes(
                json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            )
            file.counts.update(counts or {})

    def counts(self) -> dict[str, int]:
        """The counts of the finished files, summed."""
        total: dict[str, int] = {}
        for record in self.records.values():
            for name, count in record.counts.items():
                total[name] = total.get(name, 0) + count
        return dict(sorted(total.items()))

    def commit(self, summary: Mapping[str, Any] | None = None) -> Output:
        """Finish the output: the manifest is written last, then what only resuming needed is removed."""
        records = [asdict(self.records[name]) for name in sorted(self.records)]
        body = {
            **asdict(self.identity),
            "digest": self.identity.digest,
            "files": records,
            "summary": dict(summary or {}),
        }
        manifest = {**body, "manifest_sha256": hashlib.sha256(canonical_json(body)).hexdigest()}
        self._log_run()
        write_bytes(
            self.path / MANIFEST,
            json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n",
        )
        shutil.rmtree(self.path / SCRATCH, ignore_errors=True)
        return read_output(self.path)

    def _log_run(self) -> None:
        seconds = time.monotonic() - self.clock
        earlier = _read_run(self.path)
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
                    },
                ],
            },
        )


@dataclass(frozen=True)
class PendingFile:
    path: Path
    counts: dict[str, int]


def read_output(folder: Path) -> Output:
    """Read and check a manifest.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is not what was written.
    """
    path = folder / MANIFEST
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
        recorded = manifest.pop("manifest_sha256")
        if hashlib.sha256(canonical_json(manifest)).hexdigest() != recorded:
            raise ValueError("its hash does not hold")
        files = tuple(FileRecord(**record) for record in manifest["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            "a manifest is damaged", where=path, do="run the same command again: it is made anew"
        ) from error
    counts: dict[str, int] = {}
    for record in files:
        for name, count in record.counts.items():
            counts[name] = counts.get(name, 0) + count
    return Output(
        name=manifest["name"], digest=manifest["digest"], path=folder, files=files, counts=dict(sorted(counts.items())),
        summary=manifest["summary"], config=manifest["config"], inputs=manifest["inputs"],
    )  # fmt: skip


def check_files(output: Output, verify_bytes: int | None = None) -> None:
    """Check the names and sizes of an output's files, and the contents of the first `verify_bytes` (None: of all).

    Raises:
        DamagedError: naming the first file that is not what was written.
    """
    budget = float("inf") if verify_bytes is None else verify_bytes
    for record in output.files:
        budget -= record.bytes
        if not _holds(output.path, record, content=budget >= 0):
            raise DamagedError(
                "a file is not what was written",
                where=output.path / record.name,
                do="run the same command again: it is made anew",
            )


def set_aside(folder: Path, damage: DamagedError) -> None:
    """Move a damaged file and the manifest that vouches for it out of the way, saying so."""
    damaged = Path(str(damage.where))
    log.warning("%s; set aside as %s.damaged", damage.what, damaged)
    for path in {damaged, folder / MANIFEST}:
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_name(path.name + ".damaged"))
    sync(folder)


@contextlib.contextmanager
def locked(path: Path, what: str, shared: bool = False) -> Iterator[None]:
    """Hold a lock that dies with its process.

    Raises:
        LockedError: somebody else holds it; pid, host and start are named.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LockedError(
                f"another run works on {what}: {file.read().strip() or 'just started'}",
                where=path,
                do="wait for it or stop it (hdm stop)",
            ) from error
        if not shared:
            file.truncate(0)
            file.write(
                f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            )
            file.flush()
        yield


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RUN).read_bytes())
    except (OSError, ValueError):
        return {}


def _holds(folder: Path, record: FileRecord, content: bool) -> bool:
    path = folder / record.name
    try:
        if path.stat().st_size != record.bytes:
            return False
        return not content or sha256_file(path) == record.sha256
    except FileNotFoundError:
        return False


def _append_line(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        # A torn last line of a killed run must not swallow this one.
        os.write(descriptor, b"\n" + line + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_journal(folder: Path) -> Iterator[FileRecord]:
    try:
        lines = (folder / JOURNAL).read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield FileRecord(**json.loads(line))
        except (ValueError, TypeError):
            continue  # empty, or torn by a kill: its file is then made again
