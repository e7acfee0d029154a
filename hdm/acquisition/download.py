"""The stage `download`: every item of a source gets a status, and pictures go into tar shards
unchanged.

    images-NNNNN.tar         the original bytes, member <key>.<ext>
    samples-NNNNN.parquet    one row for each item, in the source's order
    inventory.json           what became of every file, line and column of the source, with a sample
                             of the captions

A shard is finished when both of its files exist. A rerun makes the unfinished shards. Pictures of
listed URLs that a finished download of the store holds are taken from it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hdm.acquisition.collect import fetch_shard, forget, is_whole, load_pictures, write_shard
from hdm.acquisition.earlier import Earlier, earlier_downloads
from hdm.acquisition.fetch import PASSING, BlockingFetcher, Fetcher
from hdm.acquisition.inventory import EXAMPLES, Inventory, summary_lines
from hdm.acquisition.inventory import NAME as INVENTORY
from hdm.acquisition.items import Item
from hdm.acquisition.reader import Reader
from hdm.acquisition.settings import RESPECT, SCENES_VERSION, DownloadSettings, Pipeline
from hdm.acquisition.sites import Site
from hdm.acquisition.sources import open_source
from hdm.data.tables import read_table, shard_name
from hdm.errors import InputError, raised_by
from hdm.files import explain_read_error
from hdm.pictures.decoding import Decoders, header
from hdm.progress import Tracker, track
from hdm.redaction import redacted_value
from hdm.secrets import readable
from hdm.store import Draft, Identity, Output, Outputs, Store

__all__ = ["SCHEMA", "Site", "identify", "make", "open_web"]

# Raised whenever a download makes something else of the same source.
SCHEMA = 4
OPEN_SHARDS = 4  # shards of which many items are still to come
WAITING_ITEMS = 32_000  # of open shards, those included that wait for a few slow items
ENOUGH_ITEMS = 1000  # from this number of items on, too many failures stop the download

log = logging.getLogger(__name__)

OpenSite = Callable[[Pipeline], AbstractContextManager[Site]]
"""Opens what a download reads from, until the end of the block."""


@contextmanager
def open_web(pipeline: Pipeline) -> Iterator[Site]:
    """The source of the settings: the real web, or files on this machine."""
    yield Site(pipeline.download.source, pipeline.download.kind, {})


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the download depends on: the content of its source (not its location) and the settings.

    Raises:
        InputError: the source does not exist.
    """
    settings = pipeline.download
    images = pipeline.images.result_fields()
    del images["matte"]  # only headers are read here
    config = {**settings.result_fields(), "images": images}
    if settings.kind == "scenes":
        # Scenes follow from their settings; the address at which they are served does not matter.
        del config["source"]
        config["scenes"] = {**config["scenes"], "version": SCENES_VERSION}
    else:
        kind, reader = open_source(settings.source, settings.kind, settings)
        # Settings that are not used must not make another download.
        del config["scenes"]
        try:
            config |= {"kind": kind, "source": reader.fingerprint()}
        except OSError as error:
            raise explain_read_error(error, Path(error.filename or settings.source)) from error
        # Nothing where they are ignored, as they were before 0.3.0.
        if kind == "urls" and settings.opt_outs == RESPECT:
            config["opt_outs"] = RESPECT
    return Identity("download", SCHEMA, config, dict(inputs))


def preflight(pipeline: Pipeline, made: Outputs) -> Iterator[InputError]:
    """Report problems of the stage `download`, as far as they show without secrets that only the
    run can read.
    """
    settings = pipeline.download
    if readable(settings.source) and readable(settings.token):
        yield from raised_by(lambda: identify(pipeline, {}))


def make(
    pipeline: Pipeline,
    identity: Identity,
    inputs: Outputs,
    store: Store,
    site: OpenSite = open_web,
) -> Output:
    """Fetch or read every item of the source.

    Args:
        pipeline: its `download` and `images`.
        identity: from `identify`.
        inputs: none.
        store: where the output goes.
        site: opens the source; `open_web` for sources on the web or on this machine.

    Raises:
        InputError: the source is empty or unusable, more than `download.max_failed` of its items
            fail, or more than `download.max_lost_captions` captions are lost.
    """
    with (
        store.draft(identity) as draft,
        site(pipeline) as ready,
        Decoders(pipeline.images, header, pipeline.threads) as decoders,
    ):
        kind, reader = open_source(ready.source, ready.kind, pipeline.download)
        inventory = Inventory()
        tally = _Tally(draft, pipeline.download, inventory, ready.source)
        with track("download", _total(reader, pipeline), "items") as bar:
            # Lazily, so that lists of any length take bounded memory. Only items within the limit
            # arrive.
            first = islice(reader.items(inventory), pipeline.download.max_items)
            items = map(inventory.arrived, first)
            if reader.fetched:
                work = partial(_fetch_shards, pipeline, items, draft, ready, decoders, tally, bar)
                reusing = pipeline.download.reuse and identity.config["kind"] == "urls"
                outputs = earlier_downloads(store, identity) if reusing else []
                with Earlier(outputs, draft.scratch) as earlier:
                    _run(work(earlier))
                earlier.report()
                # Not in the manifest: what a store has seen before changes no output.
                draft.figures["reused"] = earlier.reused
            else:
                with BlockingFetcher(pipeline.download, ready.hosts) as fetcher:
                    _load_shards(pipeline, items, draft, decoders, fetcher, tally, bar)
        if not tally.counts["items"]:
            message = "the source has no items"
            for entry in inventory.entries[:EXAMPLES]:
                message += f"\n    {entry.place or '.'}: {entry.reason}"
            raise InputError(
                message,
                where=ready.source,
                do="look at download.source and download.kind",
            )
        tally.check()
        # Places and captions in it come from the source and may hold addresses with secrets.
        record = redacted_value(inventory.to_json())
        draft.write_json(INVENTORY, record, inventory.counts)
        _log_summary(record, tally.counts)
        _log_refused(draft, tally.counts)
        return draft.commit({"kind": kind})


def _log_summary(inventory: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    for line in summary_lines(inventory):
        log.info("%s", line)
    if inventory["counts"]["items_uncaptioned"] == counts["items"]:
        log.warning(
            "none of the %d pictures has a caption; docs/own-pictures.md says where captions are"
            " looked for",
            counts["items"],
        )


def _log_refused(draft: Draft, counts: Mapping[str, int]) -> None:
    """Name the first items that are not usable pictures; the samples tables list all of them."""
    if not counts["failed"]:
        return
    log.info("not taken: %d of %d items", counts["failed"], counts["items"])
    for row in islice(_failed_rows(draft), EXAMPLES):
        log.info("  %s: %s: %s", row["source"], row["status"], row["error"])


def _failed_rows(draft: Draft) -> Iterator[dict[str, Any]]:
    """Rows of the samples tables that have no picture, read shard by shard as needed."""
    for number in itertools.count():
        if not is_whole(draft, number):
            return
        path = draft.path / shard_name("samples", number)
        for row in read_table(path, ["source", "status", "error"]).to_pylist():
            if row["status"] != "ok":
                yield row


def _total(reader: Reader, pipeline: Pipeline) -> int | None:
    total = reader.total()
    most = pipeline.download.max_items
    return most if total is None else min(total, most or total)


class _Tally:
    """Counts what became of the items so far, and stops a download that fails too often."""

    def __init__(
        self, draft: Draft, settings: DownloadSettings, inventory: Inventory, source: str
    ) -> None:
        self.draft = draft
        self.max_failed = settings.max_failed
        self.max_lost = settings.max_lost_captions
        self.inventory = inventory
        self.source = source
        self.counts: Counter[str] = Counter()
        self.passing: list[int] = []

    def add(self, number: int) -> None:
        """Count a finished shard."""
        counts = self.draft.records[shard_name("samples", number)].counts
        self.counts.update(counts)
        num_passing = sum(counts.get(f"failed_{status}", 0) for status in PASSING)
        # Failures that may pass, such as an outage, are not kept as this shard's result.
        if num_passing > self.max_failed * counts["items"]:
            self.passing.append(number)
        self.inventory.check(self.max_lost, self.source)
        if self.counts["items"] >= ENOUGH_ITEMS:
            self.check()

    def check(self) -> None:
        """Stop if too much has failed. Shards that failed for temporary reasons, such as a broken
        connection, are then left to the next run.

        Raises:
            InputError: more captions are lost than allowed, or the share of failed items is above
                the limit.
        """
        self.inventory.check(self.max_lost, self.source)
        items = self.counts["items"]
        failed = self.counts["failed"]
        if failed <= self.max_failed * items:
            return
        for number in self.passing:
            forget(self.draft, number)
        reasons: Counter[str] = Counter()
        for name, count in self.counts.items():
            if name.startswith("failed_"):
                reasons[name.removeprefix("failed_")] = count
        examples = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(5))
        raise InputError(
            f"{failed} of the first {items} items failed ({examples}), more than"
            f" download.max_failed = {self.max_failed:g} allows",
            where=self.draft.path,
            do=(
                "mend the network or the source and run again, or set a larger download.max_failed:"
                " finished shards are kept"
            ),
        )


def _load_shards(
    pipeline: Pipeline,
    items: Iterator[Item],
    draft: Draft,
    decoders: Decoders,
    fetcher: BlockingFetcher,
    tally: _Tally,
    bar: Tracker,
) -> None:
    number = 0
    # Items are taken one at a time: a tar's bytes can only be read before the next item is taken.
    while (first := next(items, None)) is not None:
        shard = chain([first], islice(items, pipeline.download.shard_items - 1))
        if is_whole(draft, number):
            # The items are read all the same: the inventory counts them, and the next shard begins
            # after them.
            for _ in shard:
                bar.advance()
        else:
            write_shard(draft, number, load_pictures(shard, decoders, fetcher, bar))
        tally.add(number)
        number += 1


async def _fetch_shards(
    pipeline: Pipeline,
    items: Iterator[Item],
    draft: Draft,
    site: Site,
    decoders: Decoders,
    tally: _Tally,
    bar: Tracker,
    earlier: Earlier,
) -> None:
    most_open = max(OPEN_SHARDS, WAITING_ITEMS // pipeline.download.shard_items)
    opened = asyncio.Semaphore(most_open)
    busy = asyncio.Semaphore(OPEN_SHARDS)

    async def fetch(number: int, shard: list[Item]) -> None:
        # Slow items of one shard do not hold up the next ones.
        await fetch_shard(draft, number, shard, fetcher, earlier, decoders, bar, busy.release)
        tally.add(number)
        opened.release()

    respects = draft.identity.config.get("opt_outs") == RESPECT
    opened_site = Fetcher(pipeline.download, site.hosts, respects)
    # An error in one shard, or too many failures, cancels the others through the group.
    async with opened_site as fetcher, asyncio.TaskGroup() as tasks:
        number = 0
        while shard := list(islice(items, pipeline.download.shard_items)):
            if is_whole(draft, number):
                earlier.reused += sum(earlier.has(item.key) for item in shard)
                bar.advance(len(shard))
                tally.add(number)
            else:
                await opened.acquire()
                await busy.acquire()
                tasks.create_task(fetch(number, shard))
            number += 1


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end and raise its first error without the task group's wrapping.

    This also works in a notebook, where a loop runs already in this thread.
    """
    try:
        asyncio.get_running_loop()
        is_in_loop = True
    except RuntimeError:
        is_in_loop = False
    try:
        if is_in_loop:
            ThreadPoolExecutor(1).submit(asyncio.run, work).result()
        else:
            # In this thread where possible, so that Ctrl-C ends it.
            asyncio.run(work)
    except BaseExceptionGroup as group:
        # One shard's error cancels the others; whoever catches it expects the error itself.
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
