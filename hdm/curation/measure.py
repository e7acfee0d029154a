"""Measure every downloaded picture once: size, sharpness, noise, fingerprint.

What models say of it is written by `embed`, `rate` and `score`, what to keep is decided by
`decide`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hdm.config import Pipeline
from hdm.curation.downloaded import Picture
from hdm.curation.fingerprints import RECORD
from hdm.curation.looking import Look
from hdm.data.tables import MEASURES, num_shards, read_table, shard_name, write_table
from hdm.keys import Key
from hdm.store import Folder, Identity, Output

NAME = "filter.measures"
SCHEMA = 5


class Measures(Look):
    """What pixels say: `measures-*.parquet` (MEASURES)."""

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
    """All is known of a picture when it is decoded."""

    def note(self, batch: Sequence[Picture]) -> Mapping[Key, Any]:
        return {}

    def write(
        self, folder: Folder, number: int, pictures: Sequence[Picture], noted: Mapping[Key, Any]
    ) -> None:
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
        write_table(folder, shard_name("measures", number), MEASURES, rows, counts)


def read_fingerprints(measures: Output) -> np.ndarray:
    """The fingerprints of all decodable pictures in order: (N,) RECORD."""
    parts = [np.zeros(0, RECORD)]
    for number in range(num_shards(measures, "measures")):
        path = measures.file(shard_name("measures", number))
        column = read_table(path, ["fingerprint"]).column("fingerprint").drop_null()
        parts.append(np.frombuffer(b"".join(column.to_pylist()), RECORD))
    return np.concatenate(parts)


def _row(picture: Picture) -> dict[str, Any]:
    row = {"key": picture.key, "decoded": picture.decoded, **picture.facts}
    if "fingerprint" in row:
        row["fingerprint"] = bytes.fromhex(row["fingerprint"])
    return row
