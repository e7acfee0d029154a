"""Read the downloaded pictures and decode them in processes, ahead of whatever measures them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc

from hdm.caption_text.cleaning import normal_caption
from hdm.closing import Closing
from hdm.curation.settings import Pipeline
from hdm.data.shards import ImageReader
from hdm.data.tables import read_table, shard_name
from hdm.keys import Key
from hdm.pictures.decoding import Answer, Asked, Decoders, Work, picture_cost
from hdm.pictures.reading import BadImage
from hdm.store import Output

COLUMNS = ("key", "status", "captions", "sha256", "offset", "bytes", "width", "height")


@dataclass
class Picture:
    """One downloaded item.

    `decoded` is "ok" or the reason why it cannot be decoded; `pixels`, (h, w, 3) uint8, are set
    only where a model looks at them.
    """

    key: Key
    captions: list[str]
    decoded: str
    facts: dict[str, Any] = field(default_factory=dict)
    pixels: np.ndarray | None = None


class Pictures(Closing):
    """Reads and decodes a download. Use it in a `with` block.

    Args:
        pipeline: how pictures are decoded, batch size and processes.
        download: the output.
        work: what the decoding processes do with each file.
        options: of the work.
    """

    def __init__(self, pipeline: Pipeline, download: Output, work: Work, **options: Any) -> None:
        self.download = download
        self.reader = ImageReader(download)
        self.batch_size = pipeline.filter.batch_size
        self.options = options
        self.decoders = Decoders(pipeline.images, work, pipeline.threads)

    def close(self) -> None:
        self.decoders.close()
        self.reader.close()

    def batches(self, number: int) -> Iterator[list[Picture]]:
        """Yield one shard's pictures in order. Their pixels are dropped when the next batch is
        asked for.
        """
        path = self.download.file(shard_name("samples", number))
        samples = read_table(path, COLUMNS).to_pylist()
        items = [sample for sample in samples if sample["status"] == "ok"]
        requests = (self._request(number, item) for item in items)
        # One batch waits for the models while the next one is decoded.
        answers = self.decoders.map(requests, ahead=2 * self.batch_size)
        pairs = zip(items, answers, strict=True)
        pictures = (_picture(item, answer) for item, answer in pairs)
        while batch := list(islice(pictures, self.batch_size)):
            yield batch
            # The caller keeps all pictures of the shard: without this it would keep all pixels too.
            for picture in batch:
                picture.pixels = None

    def _request(self, number: int, item: Mapping[str, Any]) -> Asked:
        place = (number, item["offset"], item["bytes"], item["sha256"])
        return Asked(
            item["key"],
            partial(self.reader.read, *place),
            picture_cost(item["width"], item["height"], item["bytes"]),
            self.options,
        )


def num_items(download: Output, number: int) -> int:
    """Number of downloaded pictures in a shard."""
    statuses = read_table(download.file(shard_name("samples", number)), ["status"])
    return int(pc.sum(pc.equal(statuses.column("status"), "ok")).as_py() or 0)


def _picture(item: Mapping[str, Any], answer: Future[Answer]) -> Picture:
    captions = []
    for given in item["captions"]:
        if caption := normal_caption(given):
            captions.append(caption)
    try:
        decoded = answer.result()
    except BadImage as refusal:
        return Picture(item["key"], captions, refusal.status)
    pixels = decoded.arrays[0] if decoded.arrays else None
    return Picture(item["key"], captions, "ok", decoded.facts, pixels)
