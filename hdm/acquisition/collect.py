"""Turn items into shards: every item gets a status, every picture's bytes go into a tar, in the
order of the items.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hdm.acquisition.fetch import BlockingFetcher, Fetcher
from hdm.acquisition.items import Item, Unreadable, Url
from hdm.closing import Closing
from hdm.data.shards import TarShard
from hdm.data.tables import SAMPLES, shard_name, write_table
from hdm.files import explain_os_error
from hdm.pictures.decoding import Answer, Asked, Decoders
from hdm.pictures.reading import BadImage, Header
from hdm.progress import Tracker
from hdm.store import Draft


@dataclass(frozen=True)
class Sample:
    """The result for an item. `sha256`, `header` and `num_bytes` describe its picture, if it has
    one.
    """

    item: Item
    status: str
    error: str | None = None
    sha256: str | None = None
    header: Header | None = None
    num_bytes: int = 0


Loaded = tuple[Sample, bytes]


def is_whole(draft: Draft, number: int) -> bool:
    """Whether both files of a shard exist, from this run or an earlier one."""
    return draft.has(shard_name("images", number, "tar")) and draft.has(
        shard_name("samples", number)
    )


def forget(draft: Draft, number: int) -> None:
    """Remove a shard's table, so that the next run makes the shard again."""
    # The table alone: without it the shard counts as unfinished, and both files are written again.
    name = shard_name("samples", number)
    draft.records.pop(name, None)
    (draft.path / name).unlink(missing_ok=True)


def write_shard(draft: Draft, number: int, loaded: Iterable[Loaded]) -> None:
    """Write a shard's tar, then its table."""
    samples: list[Sample] = []
    rows: dict[str, list[Any]] = {name: [] for name in SAMPLES.names}
    # The tar first: a shard whose table is there is finished.
    with draft.write(shard_name("images", number, "tar")) as file, TarShard(file.path) as tar:
        for sample, data in loaded:
            samples.append(sample)
            row = _row(sample)
            if sample.header:
                row["offset"] = tar.add(sample.item.key, sample.header.format, data)
            for name, column in rows.items():
                column.append(row.get(name))
    write_table(draft, shard_name("samples", number), SAMPLES, rows, _counts(samples))


def _row(sample: Sample) -> dict[str, Any]:
    """A row of SAMPLES, without the offset. Columns of the picture are missing if there is none."""
    item = sample.item
    row: dict[str, Any] = {
        "key": item.key,
        "source": item.source,
        "status": sample.status,
        "error": sample.error,
        "captions": list(item.captions),
        "licence": item.licence,
        "sha256": sample.sha256,
    }
    if sample.header:
        row["format"] = sample.header.format
        row["width"] = sample.header.width
        row["height"] = sample.header.height
        row["bytes"] = sample.num_bytes
    return row


def load_pictures(
    items: Iterable[Item], decoders: Decoders, fetcher: BlockingFetcher, bar: Tracker
) -> Iterator[Loaded]:
    """Read items from files on this machine, one after the other; single ones may be URLs.

    The decoders, whose work is `header`, read the headers.
    """
    # The decoders take requests ahead of the answers, and these come without their items.
    waiting: deque[tuple[Item, bytes]] = deque()
    for answer in decoders.map(_requests(items, fetcher, waiting)):
        item, data = waiting.popleft()
        try:
            yield _good(item, data, answer.result()), data
        except (Unreadable, BadImage) as refusal:
            yield Sample(item, refusal.status, refusal.message), b""
        bar.advance()


def _requests(
    items: Iterable[Item], fetcher: BlockingFetcher, waiting: deque[tuple[Item, bytes]]
) -> Iterator[Asked]:
    """Decoding requests for the items, which are appended to `waiting` with their bytes. The answer
    for an item that cannot be read raises the reason.
    """
    for item in items:
        assert item.load is not None
        try:
            loaded = item.load()
            data = fetcher.fetch(loaded) if isinstance(loaded, Url) else loaded
        except Unreadable as refusal:
            # Asked all the same, so that answers and items stay in step.
            waiting.append((item, b""))
            yield Asked(item.key, partial(_refuse, refusal))
        else:
            waiting.append((item, data))
            yield Asked(item.key, partial(bytes, data), 2 * len(data))


def _refuse(refusal: Unreadable) -> bytes:
    raise refusal


async def fetch_shard(
    draft: Draft,
    number: int,
    items: list[Item],
    fetcher: Fetcher,
    decoders: Decoders,
    bar: Tracker,
) -> None:
    """Fetch a shard's items, many at once, and write the shard in their order."""
    with _Spill(draft.scratch) as spill:
        # All requests of a shard at once; the fetcher bounds how many of them run.
        async with asyncio.TaskGroup() as tasks:
            fetched = []
            for item in items:
                fetched.append(tasks.create_task(_fetch(item, fetcher, decoders, spill, bar)))
        results = [task.result() for task in fetched]
        # Read when it is written, so that memory holds one body at a time.
        loaded = ((sample, spill.read(offset, sample.num_bytes)) for sample, offset in results)
        # Writing blocks: in a thread it does not hold up the other shards' requests.
        await asyncio.to_thread(write_shard, draft, number, loaded)


async def _fetch(
    item: Item, fetcher: Fetcher, decoders: Decoders, spill: _Spill, bar: Tracker
) -> tuple[Sample, int]:
    """The result for an item, and the offset of its bytes in the spill."""
    try:
        loaded = item.load() if item.load else Url(item.source)
        data = await fetcher.fetch(loaded) if isinstance(loaded, Url) else loaded
        answer = decoders.submit(Asked(item.key, partial(bytes, data)))
        sample = _good(item, data, await asyncio.wrap_future(answer))
    except (Unreadable, BadImage) as refusal:
        sample = Sample(item, refusal.status, refusal.message)
        offset = 0
    else:
        offset = spill.append(data)
    bar.advance()
    return sample, offset


class _Spill(Closing):
    """Bodies that wait on disk until it is their turn. In memory, those that arrive before a slow
    one could fill it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Closed in `close`.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._end = 0

    def close(self) -> None:
        self._file.close()

    def append(self, data: bytes) -> int:
        offset = self._end
        try:
            # An unbuffered write may write only part of the data.
            while data:
                num_written = self._file.write(data)
                self._end += num_written
                data = data[num_written:]
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        return offset

    def read(self, offset: int, num_bytes: int) -> bytes:
        return os.pread(self._file.fileno(), num_bytes, offset)


def _good(item: Item, data: bytes, answer: Answer) -> Sample:
    digest = hashlib.sha256(data).hexdigest()
    return Sample(item, "ok", None, digest, Header(**answer.facts), len(data))


def _counts(samples: list[Sample]) -> dict[str, int]:
    failures: Counter[str] = Counter()
    num_bytes = 0
    for sample in samples:
        num_bytes += sample.num_bytes
        if sample.header is None:
            failures[f"failed_{sample.status}"] += 1
    return {
        "items": len(samples),
        "ok": len(samples) - failures.total(),
        "failed": failures.total(),
        "bytes": num_bytes,
        **dict(sorted(failures.items())),
    }
