"""Measure every downloaded picture once: size, sharpness, noise, fingerprint.

Models' results are written by `embed`, `rate` and `score`; `decide` decides what to keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hdm.curation.downloaded import Picture
from hdm.curation.fingerprints import RECORD
from hdm.curation.looking import Look
from hdm.curation.settings import Pipeline
from hdm.data.tables import MEASURES, num_shards, read_table, shard_name, write_table
from hdm.keys import Key
from hdm.store import Folder, Identity, Output

NAME = "filter.measures"
SCHEMA = 5


class Measures(Look):
    """Measures of the pixels: `measures-*.parquet` (MEASURES)."""

    name = NAME
    what = "measure"
    kinds = ("measures",)
    measured = True

    def identify(self, pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
        """What the measures depend on: the download and how pictures are decoded. No threshold."""
        return Identity(NAME, SCHEMA, {"images": pipeline.images.result_fields()}, dict(inputs))

    def load(self, pipeline: Pipeline) -> _Rows:
        return _Rows()


class _Rows:
    """Rows of measures. The decoding processes have measured everything, so `note` adds nothing."""

    def note(self, batch: Sequence[Picture]) -> Mapping[Key, Any]:
        return {}

    def write(
        self, folder: Folder, number: int, pictures: Sequence[Picture], noted: Mapping[Key, Any]
    ) -> None:
        listed = [_row(picture) for picture in pictures]
        rows = {name: [row.get(name) for row in listed] for name in MEASURES.names}
        statuses = Counter(picture.decoded for picture in pictures)
        decoded = statuses.pop("ok", 0)
        refused = {f"undecodable_{status}": count for status, count in sorted(statuses.items())}
        counts = {
            "items": len(pictures),
            "decoded": decoded,
            "undecodable": len(pictures) - decoded,
            **refused,
        }
        write_table(folder, shard_name("measures", number), MEASURES, rows, counts)


def read_fingerprints(measures: Output) -> np.ndarray:
    """The fingerprints of all decodable pictures in order: (N,) RECORD."""
    paths = [
        measures.file(shard_name("measures", number))
        for number in range(num_shards(measures, "measures"))
    ]
    # Filled in place: at a million pictures, a second copy would be 1.2 GiB.
    records = np.empty(sum(pq.read_metadata(path).num_rows for path in paths), RECORD)
    count = 0
    for path in paths:
        column = read_table(path, ["fingerprint"]).column("fingerprint").drop_null()
        records[count : count + len(column)] = np.frombuffer(b"".join(column.to_pylist()), RECORD)
        count += len(column)
    return records[:count]


def _row(picture: Picture) -> dict[str, Any]:
    row = {"key": picture.key, "decoded": picture.decoded, **picture.facts}
    if "fingerprint" in row:
        row["fingerprint"] = bytes.fromhex(row["fingerprint"])
    return row
