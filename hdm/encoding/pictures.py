"""Select the pictures to encode; read, decode, cut and resize them in processes of their own, ahead
of the encoder.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hdm.chance import uniform
from hdm.closing import Closing
from hdm.data.shards import ImageReader
from hdm.data.tables import num_shards, read_table, shard_name
from hdm.encoding.cut import cut_frames
from hdm.encoding.frames import Framing
from hdm.encoding.settings import SHARE_STEP
from hdm.errors import DamagedError, InputError
from hdm.keys import Key, key_numbers
from hdm.pictures.decoding import Asked, Decoders, picture_cost
from hdm.pictures.reading import BadImage
from hdm.pictures.settings import ImageSettings
from hdm.store import Output

SHARE_SEED = 0x5348415245  # another one would deal out all pictures anew
log = logging.getLogger(__name__)


def kept_pictures(download: Output, filter: Output) -> pa.Table:
    """A row for each kept picture: key, shard, offset, bytes, start of sha256, width, height, and
    whether it is for training.

    Of a picture that was gone when its shard was downloaded again, offset, bytes and sha256 are
    null. It has a row all the same: unfinished files were planned with it.

    Raises:
        DamagedError: the download and the filter list different items.
        InputError: the filter kept no picture.
    """
    tables = []
    for shard in range(num_shards(filter, "scores")):
        scores = read_table(
            filter.file(shard_name("scores", shard)), ["key", "kept", "width", "height", "split"]
        )
        path = download.file(shard_name("samples", shard))
        samples = read_table(path, ["key", "offset", "bytes", "sha256"])
        # By key: the filter saw only what was there when it looked, and a shard downloaded again
        # may have other pictures of the same items.
        rows = pc.index_in(scores.column("key"), value_set=samples.column("key"))
        if rows.null_count:
            raise DamagedError(
                "the items of a shard are not those that were filtered",
                where=path,
                do="remove the folders download, filter and filter.* from the store, and run again",
            )
        samples = samples.take(rows)
        # Width and height are the filter's, which it measured on the decoded, upright picture.
        columns = {
            "key": scores.column("key"),
            "width": scores.column("width"),
            "height": scores.column("height"),
            "is_train": pc.equal(scores.column("split"), "train"),
            "shard": pa.array(np.full(len(scores), shard, np.int32)),
            "offset": samples.column("offset"),
            "bytes": samples.column("bytes"),
            # 64 bits detect any damage and take little memory.
            "sha256": pc.utf8_slice_codeunits(samples.column("sha256"), 0, 16),
        }
        tables.append(pa.table(columns).filter(scores.column("kept")))
    if not any(len(table) for table in tables):
        raise InputError(
            "the filter kept no picture, so there is nothing to encode",
            where=filter.path,
            do="lower the filter's thresholds",
        )
    # One chunk, since rows are taken from it by their position.
    return pa.concat_tables(tables).combine_chunks()


def sixteenths(pictures: pa.Table) -> np.ndarray:
    """The sixteenth that each of `kept_pictures` is in, (n,) from 0 to 15: training pictures are
    dealt out by their keys, and the first sixteenth has all others.
    """
    keys = key_numbers(pictures.column("key"))
    drawn = np.floor(uniform(keys, SHARE_SEED, 0) / SHARE_STEP).astype(np.int8)
    return np.where(pictures.column("is_train").to_numpy(), drawn, np.int8(0))


@dataclass(frozen=True)
class Frame:
    """A picture ready to be encoded: pixels (h, w, 3) uint8; `width` and `height` are the whole
    picture's.
    """

    key: Key
    width: int
    height: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Request:
    """A picture (a row of `kept_pictures`) and the frames to make from one decoding of it: their
    framing and their (width, height).
    """

    picture: Mapping[str, Any]
    frames: Sequence[tuple[Framing, tuple[int, int]]]

    @property
    def cost_bytes(self) -> int:
        """Upper bound of the memory from reading the file to using its frames."""
        picture = self.picture
        cost = picture_cost(picture["width"], picture["height"], picture["bytes"])
        for _, (width, height) in self.frames:
            cost += 3 * width * height
        return cost


class FrameReader(Closing):
    """Frames of pictures, decoded some pictures ahead of the encoder. Use it in a `with` block.

    Args:
        download: the download stage's output.
        settings: how pictures are decoded, and how much memory they may take.
        ahead: number of pictures that may be in progress or waiting.
        count: processes; None: one for each core.
    """

    def __init__(
        self, download: Output, settings: ImageSettings, ahead: int, count: int | None = None
    ) -> None:
        self.reader = ImageReader(download)
        self.ahead = ahead
        self.decoders = Decoders(settings, cut_frames, count)

    def close(self) -> None:
        self.decoders.close()
        self.reader.close()

    def read(self, requests: Iterable[Request]) -> Iterator[list[Frame] | None]:
        """Yield the frames of each picture, in order; None for a picture that cannot be decoded.

        Raises:
            DamagedError: a file is not what was downloaded.
        """
        # The decoders take requests ahead of the answers, and these come without their pictures.
        waiting: deque[Mapping[str, Any]] = deque()
        # Answers come in the order of the requests, on which `waiting` relies.
        for answer in self.decoders.map(self._ask(requests, waiting), self.ahead):
            picture = waiting.popleft()
            key = picture["key"]
            try:
                frames = answer.result().arrays
            except BadImage as refusal:
                log.warning("picture %s is left out: %s", key, refusal.message)
                yield None
            else:
                yield [Frame(key, picture["width"], picture["height"], pixels) for pixels in frames]

    def _ask(
        self, requests: Iterable[Request], waiting: deque[Mapping[str, Any]]
    ) -> Iterator[Asked]:
        """Tasks for the decoding processes. Each one's picture is appended to `waiting`."""
        for request in requests:
            picture = request.picture
            size = picture["width"], picture["height"]
            frames = [(framing.cut(*size), frame_size) for framing, frame_size in request.frames]
            waiting.append(picture)
            place = (picture["shard"], picture["offset"], picture["bytes"], picture["sha256"])
            yield Asked(
                picture["key"],
                partial(self.reader.read, *place),
                request.cost_bytes,
                {"size": size, "frames": frames},
            )
