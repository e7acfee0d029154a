"""Turn items into shards: every item gets a status, every picture's bytes go into a tar, in the
order of the items.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from hdm.acquisition.earlier import Earlier
from hdm.acquisition.fetch import BlockingFetcher, Fetcher
from hdm.acquisition.items import Item, Unreadable, Url, too_large
from hdm.acquisition.spill import Spill
from hdm.data.shards import TarShard
from hdm.data.tables import SAMPLES, shard_name, write_table
from hdm.pictures.decoding import Answer, Asked, Decoders
from hdm.pictures.reading import BadImage, Header
from hdm.progress import Tracker
from hdm.store import Draft

FEW = 20
"""Few items are left of a shard if it is one in so many."""


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
    earlier: Earlier,
    decoders: Decoders,
    bar: Tracker,
    few_left: Callable[[], None],
) -> None:
    """Fetch a shard's items that no earlier download has, many at once, and write the shard in
    their order.

    Args:
        few_left: called once when most items are there.
    """
    num_left = len(items)

    def count_down(_: asyncio.Task[tuple[Sample, int]]) -> None:
        nonlocal num_left
        num_left -= 1
        if num_left == len(items) // FEW:
            few_left()

    # On disk: in memory, bodies that arrive before a slow one could fill it.
    with Spill(draft.scratch) as spill:
        # All requests of a shard at once; the fetcher bounds how many of them run.
        async with asyncio.TaskGroup() as tasks:
            fetched = []
            for item in items:
                one = _take(item, fetcher, earlier, decoders, spill, bar)
                fetched.append(tasks.create_task(one))
                fetched[-1].add_done_callback(count_down)
        results = [task.result() for task in fetched]
        # Read when it is written, so that memory holds one body at a time.
        loaded = ((sample, spill.read(offset, sample.num_bytes)) for sample, offset in results)
        # Writing blocks: in a thread it does not hold up the other shards' requests.
        await asyncio.to_thread(write_shard, draft, number, loaded)
        await asyncio.to_thread(earlier.share, draft, shard_name("images", number, "tar"))


async def _take(
    item: Item,
    fetcher: Fetcher,
    earlier: Earlier,
    decoders: Decoders,
    spill: Spill,
    bar: Tracker,
) -> tuple[Sample, int]:
    """The result for an item, and the offset of its bytes in the spill."""
    try:
        result = await _taken_again(item, fetcher.settings.max_bytes, earlier, decoders, spill)
        if result is None:
            loaded = item.load() if item.load else Url(item.source)
            data = await fetcher.fetch(loaded) if isinstance(loaded, Url) else loaded
            result = await _kept(item, data, decoders, spill)
    except (Unreadable, BadImage) as refusal:
        result = Sample(item, refusal.status, refusal.message), 0
    bar.advance(note=f"{earlier.reused} reused" if earlier.reused else "")
    return result


async def _taken_again(
    item: Item, max_bytes: int, earlier: Earlier, decoders: Decoders, spill: Spill
) -> tuple[Sample, int] | None:
    """The result for an item whose bytes an earlier download holds, as if they had been fetched;
    None if there are none.
    """
    if item.load is not None:  # its source is not a URL
        return None
    async with earlier.picture(item.key) as data:
        if data is None:
            return None
        if len(data) > max_bytes:
            raise too_large(max_bytes)
        return await _kept(item, data, decoders, spill)


async def _kept(item: Item, data: bytes, decoders: Decoders, spill: Spill) -> tuple[Sample, int]:
    answer = decoders.submit(Asked(item.key, partial(bytes, data)))
    sample = _good(item, data, await asyncio.wrap_future(answer))
    return sample, spill.append(data)


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
