"""Take files over from outputs that were made alike, where a part would read the same again: of a
list of URLs that grew, or was tried again, most shards are what they were.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hdm.errors import DamagedError, HdmError, LockedError, counted
from hdm.files import canonical_json, fast_hash
from hdm.parts.step import Files, Part
from hdm.store import Draft, FileRecord, Identity, Output, Store, held, read_at_home

log = logging.getLogger(__name__)

EXTENT = ("share",)
"""Settings that say which files an output has, and change none of them."""
Hashes = Mapping[tuple[str, str], str]
"""sha256 of the files of an output's inputs, by the input's name and the file's."""


def take_over(parts: Iterable[Part[Any]], drafts: Mapping[str, Draft], store: Store) -> None:
    """Take over the files that other outputs of the same settings made from equal files.

    Args:
        parts: those that say what they read.
        drafts: that take the files, by output name.
        store: with the outputs.
    """
    known = [part for part in parts if part.reads is not None]
    for name, draft in drafts.items():
        lacking = [part for part in known if _lacking(part, name, draft)]
        if not lacking:
            continue
        own = _read_by(draft.identity, store)
        taken = 0
        for output in _made_alike(draft.identity, store):
            # While it is read, `hdm gc` leaves it alone.
            with contextlib.suppress(LockedError), held(output.path):
                taken += _take(lacking, draft, own, output, _read_by(output.identity, store))
        if taken:
            log.info("%s: %s taken over from outputs made alike", name, counted(taken, "file"))


def _lacking(part: Part[Any], name: str, draft: Draft) -> list[str]:
    """The files of an output that a part still has to make."""
    return [file for file in part.files.get(name, ()) if not draft.has(file)]


def _made_alike(identity: Identity, store: Store) -> Iterator[Output]:
    """The finished outputs that differ from one in their inputs or extent alone."""
    for output in store.outputs(identity.name):
        if output.digest != identity.digest and _recipe(output.identity) == _recipe(identity):
            yield output


def _recipe(identity: Identity) -> bytes:
    """All but which inputs they are, and how far it goes."""
    config = {name: None if name in EXTENT else value for name, value in identity.config.items()}
    return canonical_json([identity.schema, config, identity.weights, sorted(identity.inputs)])


def _read_by(identity: Identity, store: Store) -> Hashes:
    """The hashes of the files of an output's inputs, as far as they are still in the store."""
    hashes = {}
    for name, digest in identity.inputs.items():
        with contextlib.suppress(FileNotFoundError, HdmError):
            for record in read_at_home(store.root / name / digest).files:
                hashes[name, record.name] = record.sha256
    return hashes


def _take(
    parts: Iterable[Part[Any]], draft: Draft, own: Hashes, output: Output, others: Hashes
) -> int:
    """Take over the files of parts that read the same for both outputs; returns their number."""
    records = {record.name: record for record in output.files}
    taken = 0
    for part in parts:
        assert part.reads is not None
        if not _same(part.reads, own, others):
            continue
        for name in _lacking(part, output.name, draft):
            if name in records:
                taken += _linked(draft, records[name], output.path / name)
    return taken


def _same(reads: Files, own: Hashes, others: Hashes) -> bool:
    for name, files in reads.items():
        for file in files:
            found = own.get((name, file))
            if found is None or found != others.get((name, file)):
                return False
    return True


def _linked(draft: Draft, record: FileRecord, path: Path) -> bool:
    """Whether a file of another output could be taken over: as a hard link, or as a copy where the
    file system has none.
    """
    with contextlib.suppress(OSError, HdmError), draft.write(record.name) as file:
        try:
            os.link(path, file.path)
        except OSError:
            shutil.copyfile(path, file.path)
        if fast_hash(file.path) != record.xxh3:
            raise DamagedError("a file is not what was written", where=path)
        file.counts.update(record.counts)
    return draft.has(record.name)
