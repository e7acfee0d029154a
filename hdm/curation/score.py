"""Scores of a registered criterion for every picture: one output for each, `filter.NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hdm.curation.criteria import Criterion, Score
from hdm.curation.downloaded import Picture
from hdm.curation.looking import Look
from hdm.curation.settings import Pipeline
from hdm.data.tables import shard_name, write_table
from hdm.keys import FIELD, Key
from hdm.models.components import resolve, weights_digest
from hdm.stage_work import SMALL_BYTES, Numbers, Size
from hdm.store import Folder, Identity

SCHEMA = 1


class Scores(Look):
    """Key, decoded, and the score in `NAME-*.parquet`; null where there is none."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.name = f"filter.{criterion.name}"
        self.what = criterion.name
        self.kinds = (criterion.name,)

    def identify(self, pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
        """What the scores depend on: the download, how pictures are decoded, and the criterion's
        version and model, but not its limit.

        Raises:
            InputError: its model is not named, or not on this machine.
        """
        weights = {}
        component = self.criterion.component
        if component is not None:
            model = resolve(pipeline.components).need(component)
            weights = {component: weights_digest(model)}
        config = {"images": pipeline.images.result_fields(), "version": self.criterion.version}
        return Identity(self.name, SCHEMA, config, dict(inputs), weights)

    def size(self, pipeline: Pipeline, numbers: Numbers) -> Size:
        """What the scores take, for `hdm plan`."""
        return Size(numbers.pictures, SMALL_BYTES, self.criterion.flops)

    def load(self, pipeline: Pipeline) -> _Scorer:
        assert self.criterion.open is not None
        return _Scorer(self.criterion.name, self.criterion.open(pipeline))


@dataclass(frozen=True)
class _Scorer:
    kind: str
    score: Score

    def note(self, batch: Sequence[Picture]) -> Mapping[Key, float | None]:
        decoded = [picture for picture in batch if picture.pixels is not None]
        if not decoded:
            return {}
        keys = [picture.key for picture in decoded]
        return dict(zip(keys, self.score(decoded), strict=True))

    def write(
        self,
        folder: Folder,
        number: int,
        pictures: Sequence[Picture],
        noted: Mapping[Key, float | None],
    ) -> None:
        # With `decoded`: the decision counts a picture as undecodable if any output could not
        # decode it.
        schema = pa.schema(
            [
                FIELD,
                pa.field("decoded", pa.string(), nullable=False),
                pa.field(self.kind, pa.float32()),
            ]
        )
        rows: dict[str, Sequence[Any]] = {
            "key": [picture.key for picture in pictures],
            "decoded": [picture.decoded for picture in pictures],
            self.kind: [noted.get(picture.key) for picture in pictures],
        }
        counts = {"items": len(pictures)}
        write_table(folder, shard_name(self.kind, number), schema, rows, counts)
