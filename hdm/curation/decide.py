"""Decide which pictures are kept, and which split each belongs to. Thresholds only: no picture is read again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from hdm.config import FilterSettings, Pipeline
from hdm.curation import measure
from hdm.curation.checks import REASONS, Verdicts, judge
from hdm.curation.measure import read_embeddings, read_fingerprints
from hdm.curation.splits import SPLITS, Shares, SplitMemory, assign_splits
from hdm.data.tables import MEASURES, SCORES, num_shards, read_table, shard_name, write_table
from hdm.errors import ConfigError, InputError, counted, raised_by
from hdm.models.components import locate, resolve
from hdm.models.devices import check_device, choose_device
from hdm.progress import track
from hdm.store import Draft, Identity, Output, Store

log = logging.getLogger(__name__)

SCHEMA = 2

# Where to look when a reason has refused everything.
_SETTINGS = {
    "undecodable": "images", "too_small": "filter.min_side_px", "aspect": "filter.max_aspect", "blurred": "filter.min_sharpness",
    "noisy": "filter.max_noise", "duplicate": "filter.duplicate_distance", "duplicate_meaning": "filter.duplicate_meaning",
    "aesthetic": "filter.min_aesthetic",
    "clip_similarity": "filter.min_clip_similarity", "top_fraction": "filter.top_fraction",
}  # fmt: skip


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the scores depend on: the thresholds and the measures.

    Raises:
        ConfigError: a threshold needs a model that is not configured, or nothing would be left for training.
    """
    for problem in _problems(pipeline):
        raise problem
    return Identity("filter", SCHEMA, pipeline.filter.result_fields(), dict(inputs))


def _problems(pipeline: Pipeline) -> Iterator[ConfigError]:
    settings = pipeline.filter
    resolved = resolve(pipeline.components)
    by = settings.top_fraction.by if settings.top_fraction else None
    needs = [
        ("filter.min_aesthetic", settings.min_aesthetic is not None, "aesthetic_head"),
        ("filter.min_clip_similarity", settings.min_clip_similarity is not None, "contrastive"),
        ("filter.duplicate_meaning", settings.duplicate_meaning is not None, "contrastive"),
        ("filter.top_fraction.by: aesthetic", by == "aesthetic", "aesthetic_head"),
        ("filter.top_fraction.by: clip_similarity", by == "clip_similarity", "contrastive"),
    ]
    for setting, used, component in needs:
        if used and getattr(resolved, component) is None:
            yield ConfigError(
                f"{setting} needs components.{component}, which is not set",
                do=f"set components.{component}, or leave {setting} out",
            )
    if settings.validation + settings.held_out >= 1:
        yield ConfigError(
            "filter.validation and filter.held_out together leave nothing for training",
            where="filter.validation, filter.held_out",
            do="write shares that add up to less than 1",
        )


def preflight(pipeline: Pipeline, made: Mapping[str, Output]) -> Iterator[InputError]:
    """What of `filter` cannot work: measures and thresholds."""
    yield from raised_by(
        partial(measure.identify, pipeline, {}),
        partial(check_device, pipeline.filter.device, "filter.device"),
    )
    components = resolve(pipeline.components)
    for reference in filter(None, (components.contrastive, components.aesthetic_head)):
        yield from raised_by(partial(locate, reference))
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
    measures = inputs["filter.measures"]
    names = [name for name in MEASURES.names if name != "fingerprint"]
    shards = [
        read_table(measures.file(shard_name("measures", number)), names)
        for number in range(num_shards(measures, "measures"))
    ]
    table = pa.concat_tables(shards) if shards else None
    if table is None or not len(table):
        raise InputError(
            "no picture was downloaded, so there is nothing to filter",
            where=inputs["download"].path,
            do="look at the statuses in its samples tables",
        )
    with store.draft(identity) as draft, track("filter", len(table), "pictures") as bar:
        verdicts = _judge(table, measures, pipeline.filter)
        if not verdicts.kept.any():
            raise _nothing_kept(verdicts)
        splits, num_moved = _splits(table, verdicts, pipeline.filter, store)
        start = 0
        for number, shard in enumerate(shards):
            stop = start + len(shard)
            if not draft.has(shard_name("scores", number)):
                _write(
                    draft,
                    number,
                    shard,
                    verdicts.reasons[start:stop],
                    verdicts.details[start:stop],
                    splits[start:stop],
                )
            bar.advance(len(shard))
            start = stop
        return draft.commit({"moved_to_train": num_moved} if num_moved else None)


def _judge(table: pa.Table, measures: Output, settings: FilterSettings) -> Verdicts:
    records = read_fingerprints(measures)
    if settings.duplicate_meaning is None:
        return judge(table, records, settings)
    device = choose_device(settings.device, "comparing embeddings")
    return judge(table, records, settings, read_embeddings(measures)[1], device)


def _splits(
    table: pa.Table, verdicts: Verdicts, settings: FilterSettings, store: Store
) -> tuple[list[str | None], int]:
    """Each kept picture's split, and how many pictures had another before.

    Refused copies get the split of their family too, so that it is there when one of them is kept some day.
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
    draft: Draft,
    number: int,
    measures: pa.Table,
    reasons: list[str | None],
    details: list[str | None],
    splits: list[str | None],
) -> None:
    kept = [reason is None for reason in reasons]
    decided: dict[str, Any] = {"kept": kept, "reason": reasons, "detail": details, "split": splits}
    rows = {
        name: decided[name] if name in decided else measures.column(name).to_pylist()
        for name in SCORES.names
    }
    counts = {"items": len(kept), "kept": sum(kept)}
    counts |= {f"rejected_{reason}": reasons.count(reason) for reason in REASONS}
    counts |= {split: splits.count(split) for split in SPLITS}
    write_table(draft, shard_name("scores", number), SCORES, rows, counts)


def _nothing_kept(verdicts: Verdicts) -> InputError:
    counts = sorted(verdicts.counts().items(), key=lambda item: -item[1])
    told = ", ".join(f"{count} {reason}" for reason, count in counts)
    return InputError(
        f"the filter keeps none of {counted(len(verdicts.reasons), 'picture')}: {told}",
        do=f"look at the pictures, or loosen {', '.join(_SETTINGS[reason] for reason, _ in counts)}",
    )
