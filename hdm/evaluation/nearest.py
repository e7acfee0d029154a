"""Find the training picture nearest to a generated one by pixels, which shows whether a model draws
or copies its training pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from hdm.data.captions import captions_by_key
from hdm.data.shards import ImageReader
from hdm.data.tables import num_shards, read_table, read_tables, shard_name
from hdm.evaluation.settings import Pipeline
from hdm.keys import Key
from hdm.pictures.decoding import Asked, Decoders, picture_cost, pixels
from hdm.pictures.reading import BadImage
from hdm.progress import track
from hdm.store import Output, Outputs

SIDE_PX = 32
COPY = 10.0
"""Root mean square difference of 32 × 32 thumbnails, in grey levels, up to which a picture counts
as a copy. An autoencoder (TAEF2) reconstructs Noto Emoji's 2,077 pictures within 7; all but 1 %
of the other names are farther away than 12.8.
"""
_COLUMNS = ("key", "offset", "bytes", "sha256", "width", "height")


@dataclass(frozen=True)
class Nearest:
    """The training picture nearest to a generated one: its key, its first caption, and its distance
    in grey levels.
    """

    key: Key
    caption: str
    distance: float

    @property
    def copied(self) -> bool:
        """Whether the generated picture counts as a copy of it."""
        return self.distance <= COPY


def nearest_training(
    pipeline: Pipeline, inputs: Outputs, pictures: Sequence[np.ndarray]
) -> list[Nearest]:
    """For each generated picture (H, W, 3) uint8 the nearest picture of the split `train`.

    Args:
        pipeline: says how picture files are decoded.
        inputs: the outputs `download`, `filter` and `caption`.
    """
    keys, thumbnails = _training_thumbnails(pipeline, inputs)
    pairs = []
    for picture in pictures:
        # One generated picture at a time, so that memory holds one matrix of differences.
        distances = np.sqrt(np.square(thumbnails - thumbnail(picture)).mean(1))
        row = int(distances.argmin())
        pairs.append((keys[row], float(distances[row])))
    captions = captions_by_key(inputs["caption"], sorted({key for key, _ in pairs}))
    return [Nearest(key, next(iter(captions[key]), ""), distance) for key, distance in pairs]


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 as SIDE_PX² averaged pixels, one row of float32."""
    small = Image.fromarray(picture).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1)


def _training_thumbnails(pipeline: Pipeline, inputs: Outputs) -> tuple[list[Key], np.ndarray]:
    scores = read_tables(inputs["filter"], "scores", ["key", "split"])
    train_keys = scores.filter(pc.field("split") == "train")["key"]
    asked: list[Key] = []
    keys: list[Key] = []
    thumbnails: list[np.ndarray] = []
    with (
        ImageReader(inputs["download"]) as reader,
        Decoders(pipeline.images, pixels, pipeline.threads) as decoders,
        track("nearest", len(train_keys), "pictures") as bar,
    ):
        # `asked` grows as requests are taken; answers come in the same order.
        requests = _requests(inputs["download"], reader, train_keys, asked)
        for number, answer in enumerate(decoders.map(requests)):
            # Training left out what cannot be decoded, or downloaded, any more.
            with suppress(BadImage):
                thumbnails.append(thumbnail(answer.result().arrays[0]))
                keys.append(asked[number])
            bar.advance()
    return keys, np.stack(thumbnails)


def _requests(
    download: Output, reader: ImageReader, selected: pa.ChunkedArray, keys: list[Key]
) -> Iterator[Asked]:
    """Decoding requests for the selected pictures. Their keys are appended to `keys`."""
    for number in range(num_shards(download, "samples")):
        rows = read_table(download.file(shard_name("samples", number)), _COLUMNS)
        for row in rows.filter(pc.is_in(rows["key"], selected.combine_chunks())).to_pylist():
            keys.append(row["key"])
            load = partial(reader.read, number, row["offset"], row["bytes"], row["sha256"])
            cost = picture_cost(row["width"], row["height"], row["bytes"])
            yield Asked(row["key"], load, cost)
