"""What a registered criterion says of every picture: one output for each, `filter.NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from hdm.config import Pipeline
from hdm.curation.criteria import Criterion, Score
from hdm.curation.look import EMBED_SIDE_PX
from hdm.curation.pictures import Picture, Pictures, missing_shards, num_items
from hdm.data.decoding import pixels
from hdm.data.tables import shard_name, write_table
from hdm.models.components import resolve, weights_digest
from hdm.progress import track
from hdm.store import Identity, Output, Store

SCHEMA = 1


def identify(pipeline: Pipeline, inputs: Mapping[str, str], *, criterion: Criterion) -> Identity:
    """What the scores depend on: the download, how pictures are decoded, the criterion's version
    and model. No limit.

    Raises:
        InputError: its model is not named, or not on this machine.
    """
    weights = {}
    if criterion.component is not None:
        model = resolve(pipeline.components).need(criterion.component)
        weights = {criterion.component: weights_digest(model)}
    config = {"images": pipeline.images.result_fields(), "version": criterion.version}
    return Identity(f"filter.{criterion.name}", SCHEMA, config, dict(inputs), weights)


def make(
    pipeline: Pipeline,
    identity: Identity,
    inputs: Mapping[str, Output],
    store: Store,
    *,
    criterion: Criterion,
) -> Output:
    """Score every item that was downloaded; large pictures reduced, as for the other models.

    Returns:
        An output of `NAME-*.parquet`: key, decoded, and the score; null where there is none.
    """
    assert criterion.open is not None
    download, kind = inputs["download"], criterion.name
    schema = pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("decoded", pa.string(), nullable=False),
            pa.field(kind, pa.float32()),
        ]
    )
    with store.draft(identity) as draft:
        missing = missing_shards(draft, download, [kind])
        if missing:
            score = criterion.open(pipeline)
            with (
                Pictures(pipeline, download, pixels, reduced_to_px=EMBED_SIDE_PX) as pictures,
                track(kind, num_items(download, missing), "pictures") as bar,
            ):
                for number in missing:
                    found: list[Picture] = []
                    scores: dict[str, float | None] = {}
                    for batch in pictures.batches(number):
                        scores |= _scores(score, batch)
                        found += batch
                        bar.advance(len(batch))
                    rows: dict[str, Sequence[Any]] = {
                        "key": [picture.key for picture in found],
                        "decoded": [picture.decoded for picture in found],
                        kind: [scores.get(picture.key) for picture in found],
                    }
                    write_table(
                        draft, shard_name(kind, number), schema, rows, {"items": len(found)}
                    )
        return draft.commit()


def _scores(score: Score, batch: Sequence[Picture]) -> dict[str, float | None]:
    """By key, of the pictures that can be decoded."""
    decoded = [picture for picture in batch if picture.pixels is not None]
    if not decoded:
        return {}
    keys = [picture.key for picture in decoded]
    return dict(zip(keys, score(decoded), strict=True))
