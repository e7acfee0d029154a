"""Items to shards: every item gets a status, every picture's bytes a place in a tar, in the order
of the items.
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
    """What became of an item. `sha256`, `header` and `num_bytes` are of its picture, where it has
    one.
    """

    item: Item
    status: str
    error: str | None = None
    sha256: str | None = None
    header: Header | None = None
    num_bytes: int = 0


Found = tuple[Sample, bytes]


def is_whole(draft: Draft, number: int) -> bool:
    """Whether a shard's two files are there, from this run or one before it."""
    return draft.has(shard_name("images", number, "tar")) and draft.has(
        shard_name("samples", number)
    )


def forget(draft: Draft, number: int) -> None:
    """Remove a shard's table, so that the next run makes the shard anew."""
    name = shard_name("samples", number)
    draft.records.pop(name, None)
    (draft.path / name).unlink(missing_ok=True)


def write_shard(draft: Draft, number: int, found: Iterable[Found]) -> None:
    """Write a shard's tar, then its table."""
    samples: list[Sample] = []
    offsets: list[int | None] = []
    with draft.write(shard_name("images", number, "tar")) as file, TarShard(file.path) as tar:
        for sample, data in found:
            samples.append(sample)
            offsets.append(
                tar.add(sample.item.key, sample.header.format, data) if sample.header else None
            )
    rows: dict[str, list[Any]] = {
        "key": [sample.item.key for sample in samples],
        "source": [sample.item.source for sample in samples],
        "status": [sample.status for sample in samples],
        "error": [sample.error for sample in samples],
        "captions": [list(sample.item.captions) for sample in samples],
        "licence": [sample.item.licence for sample in samples],
        "sha256": [sample.sha256 for sample in samples],
        "format": [sample.header.format if sample.header else None for sample in samples],
        "width": [sample.header.width if sample.header else None for sample in samples],
        "height": [sample.header.height if sample.header else None for sample in samples],
        "offset": offsets,
        "bytes": [sample.num_bytes if sample.header else None for sample in samples],
    }
    write_table(draft, shard_name("samples", number), SAMPLES, rows, _counts(samples))


def load_pictures(
    items: Iterable[Item], decoders: Decoders, fetcher: BlockingFetcher, bar: Tracker
) -> Iterator[Found]:
    """Read items that lie on this machine, one after the other, and the odd one among them that is
    a URL.

    Their headers are read in the decoders, whose work is `header`.
    """
    waiting: deque[tuple[Item, bytes]] = deque()
    for answer in decoders.map(_loaded(items, fetcher, waiting)):
        item, data = waiting.popleft()
        try:
            yield _good(item, data, answer.result()), data
        except (Unreadable, BadImage) as refusal:
            yield Sample(item, refusal.status, refusal.message), b""
        bar.advance()


def _loaded(
    items: Iterable[Item], fetcher: BlockingFetcher, waiting: deque[tuple[Item, bytes]]
) -> Iterator[Asked]:
    """The items with their bytes, which go to `waiting`; what cannot be had is said by the
    answer.
    """
    for item in items:
        assert item.load is not None
        try:
            loaded = item.load()
            data = fetcher.fetch(loaded) if isinstance(loaded, Url) else loaded
        except Unreadable as refusal:
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
        async with asyncio.TaskGroup() as tasks:
            fetched = [
                tasks.create_task(_fetch(item, fetcher, decoders, spill, bar)) for item in items
            ]
        places = [task.result() for task in fetched]
        loaded = ((sample, spill.read(place, sample.num_bytes)) for sample, place in places)
        await asyncio.to_thread(write_shard, draft, number, loaded)


async def _fetch(
    item: Item, fetcher: Fetcher, decoders: Decoders, spill: _Spill, bar: Tracker
) -> tuple[Sample, int]:
    """What became of an item, and where its bytes are in the spill."""
    try:
        loaded = item.load() if item.load else Url(item.source)
        data = await fetcher.fetch(loaded) if isinstance(loaded, Url) else loaded
        asked = decoders.submit(Asked(item.key, partial(bytes, data)))
        sample = _good(item, data, await asyncio.wrap_future(asked))
    except (Unreadable, BadImage) as refusal:
        sample = Sample(item, refusal.status, refusal.message)
        place = 0
    else:
        place = spill.append(data)
    bar.advance()
    return sample, place


class _Spill(Closing):
    """Bodies that wait on the disk for their turn; in memory, those behind a slow one could fill
    it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (closed in close)
        self._end = 0

    def close(self) -> None:
        self._file.close()

    def append(self, data: bytes) -> int:
        place = self._end
        try:
            while data:
                written = self._file.write(data)
                self._end = self._end + written
                data = data[written:]
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        return place

    def read(self, place: int, num_bytes: int) -> bytes:
        return os.pread(self._file.fileno(), num_bytes, place)


def _good(item: Item, data: bytes, answer: Answer) -> Sample:
    digest = hashlib.sha256(data).hexdigest()
    return Sample(item, "ok", None, digest, Header(**answer.facts), len(data))


def _counts(samples: list[Sample]) -> dict[str, int]:
    failures = Counter(f"failed_{sample.status}" for sample in samples if sample.header is None)
    kept = len(samples) - failures.total()
    total = {
        "items": len(samples),
        "ok": kept,
        "failed": failures.total(),
        "bytes": sum(sample.num_bytes for sample in samples),
    }
    return {**total, **dict(sorted(failures.items()))}
