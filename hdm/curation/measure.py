"""Measure every downloaded picture once: size, sharpness, noise, fingerprint.

What models say of it is written by `embed`, `rate` and `score`, what to keep is decided by
`decide`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from hdm.config import Pipeline
from hdm.curation.fingerprints import RECORD
from hdm.curation.look import look
from hdm.curation.pictures import Picture, Pictures, missing_shards, num_items
from hdm.data.tables import MEASURES, num_shards, read_table, shard_name, write_table
from hdm.progress import track
from hdm.store import Draft, Identity, Output, Store

NAME = "filter.measures"
SCHEMA = 5


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the measures depend on: the download and how pictures are decoded. No threshold."""
    return Identity(NAME, SCHEMA, {"images": pipeline.images.result_fields()}, dict(inputs))


def make(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store
) -> Output:
    """Measure every item that was downloaded.

    Returns:
        An output of `measures-*.parquet` (MEASURES).
    """
    download = inputs["download"]
    with store.draft(identity) as draft:
        missing = missing_shards(draft, download, ["measures"])
        if missing:
            total = num_items(download, missing)
            with (
                Pictures(pipeline, download, look) as pictures,
                track("measure", total, "pictures") as bar,
            ):
                for number in missing:
                    found: list[Picture] = []
                    for batch in pictures.batches(number):
                        found += batch
                        bar.advance(len(batch))
                    _write(draft, number, found)
        return draft.commit()


def read_fingerprints(measures: Output) -> np.ndarray:
    """The fingerprints of all decodable pictures in order: (N,) RECORD."""
    parts = [np.zeros(0, RECORD)]
    for number in range(num_shards(measures, "measures")):
        path = measures.file(shard_name("measures", number))
        column = read_table(path, ["fingerprint"]).column("fingerprint").drop_null()
        parts.append(np.frombuffer(b"".join(column.to_pylist()), RECORD))
    return np.concatenate(parts)


def _write(draft: Draft, number: int, pictures: list[Picture]) -> None:
    listed = [_row(picture) for picture in pictures]
    rows = {name: [row.get(name) for row in listed] for name in MEASURES.names}
    found = Counter(picture.decoded for picture in pictures)
    decoded = found.pop("ok", 0)
    refused = {f"undecodable_{status}": count for status, count in sorted(found.items())}
    counts = {
        "items": len(pictures),
        "decoded": decoded,
        "undecodable": len(pictures) - decoded,
        **refused,
    }
    write_table(draft, shard_name("measures", number), MEASURES, rows, counts)


def _row(picture: Picture) -> dict[str, Any]:
    row = {"key": picture.key, "decoded": picture.decoded, **picture.facts}
    if "fingerprint" in row:
        row["fingerprint"] = bytes.fromhex(row["fingerprint"])
    return row
