"""Decide which pictures are kept, and which split each belongs to. Thresholds only: no picture is read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from hdm.config import Pipeline
from hdm.curation import measure
from hdm.curation.checks import REASONS, Verdicts, judge
from hdm.curation.splits import assign_splits
from hdm.data.tables import SCORES, num_shards, read_table, shard_name, write_table
from hdm.errors import ConfigError, InputError, counted, raised_by
from hdm.models.components import locate, resolve
from hdm.models.devices import check_device
from hdm.progress import track
from hdm.store import Draft, Identity, Output, Store

SCHEMA = 1

# Where to look when a reason has refused everything.
_SETTINGS = {
    "undecodable": "images", "too_small": "filter.min_side_px", "aspect": "filter.max_aspect", "blurred": "filter.min_sharpness",
    "noisy": "filter.max_noise", "duplicate": "filter.duplicate_distance", "aesthetic": "filter.min_aesthetic",
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
    shards = [
        read_table(measures.file(shard_name("measures", number)))
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
        verdicts = judge(table, pipeline.filter)
        if not verdicts.kept.any():
            raise _nothing_kept(verdicts)
        splits = _splits(table, verdicts, pipeline)
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
        return draft.commit()


def _splits(table: pa.Table, verdicts: Verdicts, pipeline: Pipeline) -> list[str | None]:
    kept = np.flatnonzero(verdicts.kept)
    hashes = table.column("sha256").take(pa.array(kept)).to_pylist()
    splits: list[str | None] = [None] * len(table)
    for number, split in zip(
        kept.tolist(),
        assign_splits(hashes, pipeline.filter.validation, pipeline.filter.held_out),
        strict=True,
    ):
        splits[number] = split
    return splits


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
    counts |= {split: splits.count(split) for split in ("train", "validation", "held_out")}
    write_table(draft, shard_name("scores", number), SCORES, rows, counts)


def _nothing_kept(verdicts: Verdicts) -> InputError:
    counts = sorted(verdicts.counts().items(), key=lambda item: -item[1])
    told = ", ".join(f"{count} {reason}" for reason, count in counts)
    return InputError(
        f"the filter keeps none of {counted(len(verdicts.reasons), 'picture')}: {told}",
        do=f"look at the pictures, or loosen {', '.join(_SETTINGS[reason] for reason, _ in counts)}",
    )
