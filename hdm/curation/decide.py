"""Decide which pictures are kept, and which split each belongs to. Thresholds only: no picture is
read again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hdm import parts
from hdm.config import Pipeline
from hdm.curation.checks import Verdicts, judge
from hdm.curation.criteria import added, criteria, problems
from hdm.curation.embed import read_embeddings
from hdm.curation.measure import read_fingerprints
from hdm.curation.settings import FilterSettings
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
from hdm.keys import Key
from hdm.models.aesthetic import check_head
from hdm.models.components import locate, resolve
from hdm.models.devices import check_device, choose_device
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.store import Draft, Folder, Identity, Output, Store

log = logging.getLogger(__name__)

SCHEMA = 2


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the scores depend on: the thresholds and the measures.

    Raises:
        ConfigError: a threshold needs a model that is not configured, or nothing would be left for
            training.
    """
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


def preflight(pipeline: Pipeline, made: Mapping[str, Output]) -> Iterator[InputError]:
    """What of `filter` cannot work: measures and thresholds."""
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


def make(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store
) -> Output:
    """Decide on every downloaded item.

    Returns:
        An output of `scores-*.parquet` (SCORES), cut like the measures.

    Raises:
        InputError: nothing is kept; the reasons and their numbers are named.
    """
    tables = tuple(joined_tables(inputs))
    if not any(len(table) for table in tables):
        raise InputError(
            "no picture was downloaded, so there is nothing to filter",
            where=inputs["download"].path,
            do="look at the statuses in its samples tables",
        )
    with store.draft(identity) as draft:
        return parts.make(Deciding(pipeline.filter, inputs, tables, store), [draft])[0]


@dataclass(frozen=True)
class _Decision:
    """On all pictures, one after the other over the shards."""

    verdicts: Verdicts
    splits: list[str | None]
    num_moved: int


@dataclass(frozen=True)
class Deciding(Step[int, _Decision]):
    """Compares all pictures with the limits and with each other, then writes what was decided of
    them, shard by shard.
    """

    settings: FilterSettings
    inputs: Mapping[str, Output]
    tables: tuple[pa.Table, ...]
    store: Store

    what = "filter"
    unit = "pictures"

    @cached_property
    def decision(self) -> _Decision:
        table = pa.concat_tables(self.tables)
        verdicts = _judge(table, self.inputs, self.settings)
        if not verdicts.kept.any():
            raise _nothing_kept(verdicts)
        splits, num_moved = _splits(table, verdicts, self.settings, self.store)
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
        return {"moved_to_train": num_moved} if num_moved else {}


def joined_tables(inputs: Mapping[str, Output]) -> Iterator[pa.Table]:
    """What is known of the pictures, a table a shard."""
    measures = inputs["filter.measures"]
    names = [name for name in MEASURES.names if name != "fingerprint"]
    for number in range(num_shards(measures, "measures")):
        table = read_table(measures.file(shard_name("measures", number)), names)
        yield _join(table, number, inputs)


def _join(measures: pa.Table, number: int, inputs: Mapping[str, Output]) -> pa.Table:
    """One shard's measures with what each model says of these pictures, joined by key.

    A picture is undecodable if any of them could not decode it, since its values are missing then.
    """
    keys = measures.column("key").to_pylist()
    decoded = measures.column("decoded").to_pylist()
    columns = {name: SCORES.field(name).type for name in ("aesthetic", "clip_similarity")}
    values: dict[str, list[float | None]] = {name: [None] * len(keys) for name in columns}
    for name, output in inputs.items():
        kind = name.removeprefix("filter.")
        if name in ("download", "filter.measures"):
            continue
        scored = read_table(output.file(shard_name(kind, number)))
        row_of = {key: row for row, key in enumerate(scored.column("key").to_pylist())}
        rows = [row_of.get(key) for key in keys]
        for column in scored.column_names:
            if column == "key":
                continue
            given = scored.column(column).to_pylist()
            joined = [None if row is None else given[row] for row in rows]
            if column == "decoded":
                pairs = zip(decoded, joined, strict=True)
                decoded = [own if own != "ok" else other for own, other in pairs]
            else:
                columns[column] = scored.schema.field(column).type
                values[column] = joined
    place = measures.schema.get_field_index("decoded")
    table = measures.set_column(place, MEASURES.field("decoded"), pa.array(decoded, pa.string()))
    for name, kind_of in columns.items():
        table = table.append_column(pa.field(name, kind_of), pa.array(values[name], kind_of))
    return table


def _judge(table: pa.Table, inputs: Mapping[str, Output], settings: FilterSettings) -> Verdicts:
    measures = inputs["filter.measures"]
    ok = [
        key
        for key, decoded in zip(
            table.column("key").to_pylist(), table.column("decoded").to_pylist(), strict=True
        )
        if decoded == "ok"
    ]
    measured = read_tables(measures, "measures", ["key", "decoded"])
    own = measured.column("key").filter(pc.equal(measured.column("decoded"), "ok")).to_pylist()
    records = read_fingerprints(measures)[_places(own, ok)]
    if settings.duplicate_meaning is None:
        return judge(table, records, settings)
    device = choose_device(settings.device, "comparing embeddings")
    embedded, embeddings = read_embeddings(inputs["filter.contrastive"])
    return judge(table, records, settings, embeddings[_places(embedded, ok)], device)


def _places(keys: list[Key], wanted: list[Key]) -> np.ndarray:
    """(N,) where each wanted key stands."""
    place = {key: number for number, key in enumerate(keys)}
    return np.array([place[key] for key in wanted], np.int64)


def _splits(
    table: pa.Table, verdicts: Verdicts, settings: FilterSettings, store: Store
) -> tuple[list[str | None], int]:
    """Each kept picture's split, and how many pictures had another before.

    Refused copies get the split of their family too, so that it is there when one of them is kept
    some day.
    """
    kept_families = np.unique(verdicts.families[verdicts.kept])
    shown = np.isin(verdicts.families, kept_families)
    rows = verdicts.order[shown[verdicts.order]]
    hashes = table.column("sha256").take(pa.array(rows)).combine_chunks()
    shares = Shares(settings.validation, settings.held_out)
    memory = SplitMemory(store.root, shares)
    with memory.alone():
        known = memory.recall(hashes)
        families = verdicts.families[rows].tolist()
        assigned = assign_splits(hashes.to_pylist(), families, known, shares)
        memory.remember(hashes, assigned.splits)
    if assigned.num_moved:
        log.warning(
            "%s to training: copies join what was in two splits",
            counted(assigned.num_moved, "picture moves", "pictures move"),
        )
    splits: list[str | None] = [None] * len(table)
    for row, split in zip(rows.tolist(), assigned.splits, strict=True):
        if verdicts.reasons[row] is None:
            splits[row] = split
    return splits, assigned.num_moved


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
    rows = {
        name: decided[name] if name in decided else measures.column(name).to_pylist()
        for name in schema.names
    }
    counts = {"items": len(kept), "kept": sum(kept)}
    for criterion in criteria():
        # A registered one that is not in use has no count, so that it changes no other pipeline.
        if criterion.open is None or criterion.name in schema.names:
            counts[f"rejected_{criterion.name}"] = reasons.count(criterion.name)
    counts |= {split: splits.count(split) for split in SPLITS}
    write_table(folder, shard_name("scores", number), schema, rows, counts)


def _nothing_kept(verdicts: Verdicts) -> InputError:
    counts = sorted(verdicts.counts().items(), key=lambda item: -item[1])
    summary = ", ".join(f"{count} {reason}" for reason, count in counts)
    settings = {criterion.name: criterion.where for criterion in criteria()}
    return InputError(
        f"the filter keeps none of {counted(len(verdicts.reasons), 'picture')}: {summary}",
        do=f"look at the pictures, or loosen {', '.join(settings[reason] for reason, _ in counts)}",
    )
