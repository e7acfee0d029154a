"""Pictures of earlier downloads, so that a list that grew, or is read in another order or with
other captions, costs only what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hdm.acquisition.spill import Spill
from hdm.closing import Closing
from hdm.data.shards import ImageReader
from hdm.data.tables import num_shards, read_table, shard_name
from hdm.errors import HdmError, LockedError, counted
from hdm.keys import Key, key_number, key_numbers
from hdm.pictures.reading import BadImage
from hdm.store import MANIFEST, Draft, Identity, Output, Store, held

READ_AT_ONCE = 8
"""Pictures that are read at the same time, which bounds the memory that they take."""
COLUMNS = ("key", "status", "sha256", "offset", "bytes")
PLACE = np.dtype(
    [("sha256", "V32"), ("offset", "<i8"), ("bytes", "<i8"), ("shard", "<i4"), ("output", "<i4")]
)
"""Where the bytes of a picture are, and their hash."""

log = logging.getLogger(__name__)


def earlier_downloads(store: Store, identity: Identity) -> list[Output]:
    """The finished downloads that may hold bytes of the same URLs, the newest first.

    No other setting matters: what a URL answers does not depend on it, and limits of size and
    format are checked again.
    """
    found = []
    for output in store.outputs("download"):
        config = output.config
        if (
            output.digest != identity.digest
            and output.schema == identity.schema
            and config.get("kind") == "urls"
            # What one list may reach, or take, another may not.
            and config.get("allow_loopback") == identity.config["allow_loopback"]
            and identity.config.get("opt_outs") in (None, config.get("opt_outs"))
        ):
            with contextlib.suppress(OSError):  # removed just now
                finished = (output.path / MANIFEST).stat().st_mtime_ns
                found.append((finished, output.digest, output))
    return [output for _, _, output in sorted(found, key=lambda one: one[:2], reverse=True)]


class Earlier(Closing):
    """Pictures of finished downloads by the key of their URL. A URL takes 12 bytes of memory and 56
    of a temporary file, however many downloads have it.

    Args:
        outputs: the first one that has a picture gives it. `hdm gc` removes none of them before
            `close`.
        folder: for the temporary file.

    `reused` counts pictures that were taken, `unreadable` those that cannot be read and have to be
    fetched again.

    Raises:
        HdmError: the temporary file cannot be written.
    """

    def __init__(self, outputs: Iterable[Output], folder: Path) -> None:
        self.reused = 0
        self.unreadable = 0
        self._readers: list[ImageReader] = []
        self._tars: dict[str, Path] = {}
        self._slots = asyncio.Semaphore(READ_AT_ONCE)
        self._keys = np.zeros(0, np.uint64)
        self._numbers = np.zeros(0, np.uint32)
        with contextlib.ExitStack() as stack:
            self._places = stack.enter_context(Spill(folder))
            for output in outputs:
                try:
                    stack.enter_context(held(output.path))
                except LockedError:  # it is being removed
                    continue
                if not (output.path / MANIFEST).exists():  # removed since it was listed
                    continue
                self._add(output)
                self._readers.append(stack.enter_context(ImageReader(output)))
            # Threads of its own: those of the loop look names up, and dead names hold them up.
            # Closed first, so that none reads a file that is closed already.
            self._threads = stack.enter_context(ThreadPoolExecutor(READ_AT_ONCE, "earlier"))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close the files, and let `hdm gc` remove the outputs."""
        self._stack.close()

    def has(self, key: Key) -> bool:
        """Whether an earlier download has the picture of that key."""
        return self._find(key) is not None

    @contextlib.asynccontextmanager
    async def picture(self, key: Key) -> AsyncIterator[bytes | None]:
        """The bytes that an earlier download holds; None if none does, or they are not what was
        downloaded. Few blocks are entered at a time, so that few pictures are in memory.
        """
        number = self._find(key)
        if number is None:
            yield None
            return
        async with self._slots:
            loop = asyncio.get_running_loop()
            data = await loop.run_in_executor(self._threads, self._read, number)
            if data is not None:
                self.reused += 1
                yield data
                return
        # Outside: what follows is a request, which may take long.
        self.unreadable += 1
        yield None

    def share(self, draft: Draft, name: str) -> None:
        """Store a tar only once if an earlier download has the same."""
        twin = self._tars.get(draft.records[name].sha256)
        if twin is not None:
            draft.share(name, twin)

    def report(self) -> None:
        """Log what was taken, and what could not be."""
        if self.reused:
            log.info("%s taken from earlier downloads", counted(self.reused, "picture"))
        if self.unreadable:
            log.warning(
                "not taken from earlier downloads, which are damaged: %s"
                " (hdm verify names the files)",
                counted(self.unreadable, "picture"),
            )

    def _find(self, key: Key) -> int | None:
        """The number of a picture's place."""
        wanted = np.uint64(key_number(key))
        position = int(np.searchsorted(self._keys, wanted))
        if position == len(self._keys) or self._keys[position] != wanted:
            return None
        return int(self._numbers[position])

    def _add(self, output: Output) -> None:
        """Record the places of the pictures that no output before this one has."""
        keys = [self._keys]
        for shard in range(num_shards(output, "samples")):
            keys.append(self._add_shard(output, shard))
        every = np.concatenate(keys)
        # Places have numbers in the order in which they are recorded.
        numbers = np.arange(len(every), dtype=np.uint32)
        numbers[: len(self._numbers)] = self._numbers
        order = np.argsort(every)
        self._keys = every[order]
        self._numbers = numbers[order]
        for record in output.files:
            if record.name.endswith(".tar"):
                self._tars.setdefault(record.sha256, output.path / record.name)

    def _add_shard(self, output: Output, shard: int) -> np.ndarray:
        """Record the places of a shard's pictures; returns their keys."""
        name = shard_name("samples", shard)
        try:
            table = read_table(output.path / name, COLUMNS)
        except (HdmError, OSError):
            self.unreadable += output.counts_of(name)["ok"]
            return np.zeros(0, np.uint64)
        good = table.filter(pc.equal(table["status"], "ok"))
        keys = key_numbers(good["key"])
        is_new = ~self._have(keys)
        places = np.zeros(len(good), PLACE)
        places["sha256"] = _hashes(good["sha256"])
        places["offset"] = good["offset"].to_numpy()
        places["bytes"] = good["bytes"].to_numpy()
        places["shard"] = shard
        places["output"] = len(self._readers)
        self._places.append(places[is_new].tobytes())
        added: np.ndarray = keys[is_new]
        return added

    def _have(self, keys: np.ndarray) -> np.ndarray:
        """Whether an output that was added before has each key: (n,) bool."""
        if not len(self._keys):
            return np.zeros(len(keys), bool)
        positions = np.searchsorted(self._keys, keys)
        found: np.ndarray = self._keys[np.minimum(positions, len(self._keys) - 1)] == keys
        return found

    def _read(self, number: int) -> bytes | None:
        """The bytes at a place; None if they are not what was downloaded."""
        record = self._places.read(number * PLACE.itemsize, PLACE.itemsize)
        place = np.frombuffer(record, PLACE)[0]
        reader = self._readers[place["output"]]
        try:
            data: bytes = reader.read(
                int(place["shard"]),
                int(place["offset"]),
                int(place["bytes"]),
                place["sha256"].tobytes().hex(),
            )
        except (BadImage, HdmError, OSError):
            return None
        return data


def _hashes(texts: pa.ChunkedArray) -> np.ndarray:
    """Hexadecimal hashes as 32 bytes each."""
    return np.frombuffer(bytes.fromhex("".join(texts.to_pylist())), "V32")
