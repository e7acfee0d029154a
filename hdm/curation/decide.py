"""Decide which pictures are kept and which split each belongs to.

Only tables are read here, so changing a threshold decodes no picture again.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hdm import parts
from hdm.curation.checks import Verdicts, judge
from hdm.curation.criteria import added, criteria, problems
from hdm.curation.embed import read_embeddings
from hdm.curation.measure import read_fingerprints
from hdm.curation.settings import FilterSettings, Pipeline
from hdm.curation.splits import SPLITS, Shares, SplitMemory, assign_splits
from hdm.data.tables import (
    MEASURES,
    SCORES,
    num_shards,
    read_table,
    read_tables,
    shard_name,
    write_table,
)
from hdm.errors import ConfigError, InputError, counted, raised_by
from hdm.files import read_record, write_json
from hdm.keys import Key
from hdm.models.aesthetic import check_head
from hdm.models.components import locate, resolve
from hdm.models.devices import check_device, choose_device
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.store import COPIES, Draft, Folder, Identity, Output, Outputs, Store

log = logging.getLogger(__name__)

SCHEMA = 2
MOVED = "moved.json"  # beside the copies of what a damaged output is restored from


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the scores depend on: the thresholds and the measures.

    Raises:
        ConfigError: a threshold needs a model that is not configured, or nothing would be left for
            training.
    """
    # The first one only; `preflight` reports all of them.
    for problem in _problems(pipeline):
        raise problem
    resolved = resolve(pipeline.components)
    if resolved.contrastive is None:
        check_head(resolved)
    return Identity("filter", SCHEMA, pipeline.filter.result_fields(), dict(inputs))


def _problems(pipeline: Pipeline) -> Iterator[ConfigError]:
    settings = pipeline.filter
    resolved = resolve(pipeline.components)
    yield from problems(settings, lambda name: getattr(resolved, name) is not None)
    if settings.validation + settings.held_out >= 1:
        yield ConfigError(
            "filter.validation and filter.held_out together leave nothing for training",
            where="filter.validation, filter.held_out",
            do="write shares that add up to less than 1",
        )


def preflight(pipeline: Pipeline, made: Outputs) -> Iterator[InputError]:
    """Report the problems of the stage `filter`: its device, models and thresholds."""
    yield from raised_by(
        partial(check_device, pipeline.filter.device, "filter.device"),
        partial(check_head, resolve(pipeline.components)),
    )
    components = resolve(pipeline.components)
    for reference in filter(None, (components.contrastive, components.aesthetic_head)):
        yield from raised_by(partial(locate, reference))
    for criterion in added(pipeline.filter):
        if criterion.component and getattr(components, criterion.component):
            yield from raised_by(partial(locate, getattr(components, criterion.component)))
    yield from _problems(pipeline)


def make(pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store) -> Output:
    """Decide on every downloaded item.

    Returns:
        An output of `scores-*.parquet` (SCORES), cut like the measures.

    Raises:
        InputError: nothing is kept; the reasons and their numbers are named.
    """
    # Before the draft: where nothing was downloaded, no unfinished output is left behind.
    tables = tuple(joined_tables(inputs))
    if not any(len(table) for table in tables):
        raise InputError(
            "no picture was downloaded, so there is nothing to filter",
            where=inputs["download"].path,
            do="look at the statuses in its samples tables",
        )
    moved = store.folder(identity) / COPIES / MOVED
    return parts.make_output(
        Deciding(pipeline.filter, inputs, tables, store, moved, pipeline.threads),
        store,
        identity,
        pipeline.execution,
    )


@dataclass(frozen=True)
class _Decision:
    """On all pictures, in the order of the shards."""

    verdicts: Verdicts
    splits: list[str | None]
    num_moved: int


@dataclass(frozen=True)
class Deciding(Step[int, _Decision]):
    """Compare all pictures with the limits and with each other, then write the verdicts shard by
    shard.
    """

    settings: FilterSettings
    inputs: Outputs
    tables: tuple[pa.Table, ...]
    store: Store
    moved: Path
    """The record of moved pictures; see `_moved`."""
    cores: int | None = None
    """Compare fingerprints; None: one for each core."""

    what = "filter"
    unit = "pictures"

    @cached_property
    def decision(self) -> _Decision:
        table = pa.concat_tables(self.tables)
        threads = self.cores or len(os.sched_getaffinity(0))
        verdicts = _judge(table, self.inputs, self.settings, threads)
        if not verdicts.kept.any():
            raise _nothing_kept(verdicts)
        splits, num_moved = _splits(table, verdicts, self.settings, self.store, self.moved)
        return _Decision(verdicts, splits, num_moved)

    def plan(self) -> Iterator[Part[int]]:
        for number, table in enumerate(self.tables):
            yield Part(number, {"filter": (shard_name("scores", number),)}, len(table))

    def open(self) -> AbstractContextManager[_Decision]:
        return nullcontext(self.decision)

    def make_part(self, part: Part[int], folders: Folders, tools: _Decision, bar: Tracker) -> None:
        start = sum(len(table) for table in self.tables[: part.task])
        stop = start + len(self.tables[part.task])
        _write(
            folders["filter"],
            part.task,
            self.tables[part.task],
            tools.verdicts.reasons[start:stop],
            tools.verdicts.details[start:stop],
            tools.splits[start:stop],
        )
        bar.advance(part.size)

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        num_moved = self.decision.num_moved
        if not num_moved:
            return {}
        log.warning(
            "%s to training: copies join what was in two splits",
            counted(num_moved, "picture moves", "pictures move"),
        )
        return {"moved_to_train": num_moved}


def joined_tables(inputs: Outputs) -> Iterator[pa.Table]:
    """Measures and models' scores of all pictures, one table a shard."""
    measures = inputs["filter.measures"]
    names = [name for name in MEASURES.names if name != "fingerprint"]
    for number in range(num_shards(measures, "measures")):
        table = read_table(measures.file(shard_name("measures", number)), names)
        yield _join(table, number, inputs)


def _join(measures: pa.Table, number: int, inputs: Outputs) -> pa.Table:
    """One shard's measures and models' scores, joined by key.

    A picture is undecodable if any of the outputs could not decode it, because its values are then
    missing.
    """
    keys = measures.column("key").to_pylist()
    decoded = measures.column("decoded").to_pylist()
    # These columns exist in every table of scores, whether or not a model fills them.
    columns = {name: SCORES.field(name).type for name in ("aesthetic", "clip_similarity")}
    values: dict[str, list[float | None]] = {name: [None] * len(keys) for name in columns}
    for name, output in inputs.items():
        kind = name.removeprefix("filter.")
        if name in ("download", "filter.measures"):
            continue
        scored = read_table(output.file(shard_name(kind, number)))
        # Each picture's row among the scores; null, and so no value, where the output lacks it.
        rows = pc.index_in(measures.column("key"), value_set=scored.column("key"))
        for column in scored.column_names:
            if column == "key":
                continue
            joined = scored.column(column).take(rows).to_pylist()
            if column == "decoded":
                pairs = zip(decoded, joined, strict=True)
                decoded = [own if own != "ok" else other for own, other in pairs]
            else:
                columns[column] = scored.schema.field(column).type
                values[column] = joined
    index = measures.schema.get_field_index("decoded")
    table = measures.set_column(index, MEASURES.field("decoded"), pa.array(decoded, pa.string()))
    for name, kind_of in columns.items():
        table = table.append_column(pa.field(name, kind_of), pa.array(values[name], kind_of))
    return table


def _judge(table: pa.Table, inputs: Outputs, settings: FilterSettings, threads: int) -> Verdicts:
    measures = inputs["filter.measures"]
    ok = _decodable(table)
    # The measures' own keys: fingerprints are there for each of these, though a model may have
    # failed to decode some.
    measured = _decodable(read_tables(measures, "measures", ["key", "decoded"]))
    records = read_fingerprints(measures)
    if len(ok) < len(measured):
        records = records[_positions(measured, ok)]
    if settings.duplicate_meaning is None:
        return judge(table, records, settings, threads=threads)
    device = choose_device(settings.device, "comparing embeddings")
    embedded, embeddings = read_embeddings(inputs["filter.contrastive"])
    return judge(table, records, settings, embeddings[_positions(embedded, ok)], device, threads)


def _decodable(table: pa.Table) -> list[Key]:
    """Keys of the pictures that can be decoded, in order."""
    decodable = table.filter(pc.equal(table.column("decoded"), "ok"))
    keys: list[Key] = decodable.column("key").to_pylist()
    return keys


def _positions(keys: list[Key], wanted: list[Key]) -> np.ndarray:
    """(N,) the position of each wanted key among `keys`."""
    position = {key: number for number, key in enumerate(keys)}
    return np.array([position[key] for key in wanted], np.int64)


def _splits(
    table: pa.Table, verdicts: Verdicts, settings: FilterSettings, store: Store, moved: Path
) -> tuple[list[str | None], int]:
    """Each kept picture's split, and the number of pictures that moved from another split."""
    # Refused copies too are remembered with their family's split, in case one of them is kept
    # later.
    kept_families = np.unique(verdicts.families[verdicts.kept])
    is_remembered = np.isin(verdicts.families, kept_families)
    rows = verdicts.order[is_remembered[verdicts.order]]
    hashes = table.column("sha256").take(pa.array(rows)).combine_chunks()
    shares = Shares(settings.validation, settings.held_out)
    memory = SplitMemory(store.root, shares)
    with memory.alone():
        known = memory.recall(hashes)
        families = verdicts.families[rows].tolist()
        digests: list[str] = hashes.to_pylist()
        assigned = assign_splits(digests, families, known, shares)
        all_moved = _moved(moved, {digests[position] for position in assigned.moved})
        memory.remember(hashes, assigned.splits)
    splits: list[str | None] = [None] * len(table)
    for row, split in zip(rows.tolist(), assigned.splits, strict=True):
        if verdicts.reasons[row] is None:
            splits[row] = split
    return splits, sum(digest in all_moved for digest in digests)


def _moved(path: Path, now: set[str]) -> set[str]:
    """The hashes of all pictures that this output moves to training, those that move `now` added
    to the record.

    The store remembers where they moved. So whoever asks next (a run after a kill or damage, or
    another process that makes parts) finds that none moves, and has their number from this record
    alone. Call it before the splits are remembered.
    """
    before = set()
    if path.exists():
        do = "remove it: nothing but the number of moved pictures is lost"
        before = set(read_record(path, list[str], do))
    if now - before:
        write_json(path, sorted(now | before))
    return now | before


def _write(
    folder: Folder,
    number: int,
    measures: pa.Table,
    reasons: list[str | None],
    details: list[str | None],
    splits: list[str | None],
) -> None:
    """Write one table: SCORES, and a column for each registered criterion in use."""
    schema = SCORES
    for name in measures.column_names:
        if name not in (*MEASURES.names, *SCORES.names):
            schema = schema.append(measures.schema.field(name))
    kept = [reason is None for reason in reasons]
    decided: dict[str, Any] = {"kept": kept, "reason": reasons, "detail": details, "split": splits}
    measured = [name for name in schema.names if name not in decided]
    rows = measures.select(measured).to_pydict() | decided
    counts = {"items": len(kept), "kept": sum(kept)}
    for criterion in criteria():
        # A registered one that is not in use has no count, so that it changes no other pipeline.
        if criterion.open is None or criterion.name in schema.names:
            counts[f"rejected_{criterion.name}"] = reasons.count(criterion.name)
    counts |= {split: splits.count(split) for split in SPLITS}
    write_table(folder, shard_name("scores", number), schema, rows, counts)


def _nothing_kept(verdicts: Verdicts) -> InputError:
    where = {criterion.name: criterion.where for criterion in criteria()}
    counts = []
    settings = []
    for reason, count in Counter(verdicts.counts()).most_common():
        counts.append(f"{count} {reason}")
        settings.append(where[reason])
    pictures = counted(len(verdicts.reasons), "picture")
    return InputError(
        f"the filter keeps none of {pictures}: {', '.join(counts)}",
        do=f"look at the pictures, or loosen {', '.join(settings)}",
    )
