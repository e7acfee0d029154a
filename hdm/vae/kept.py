"""The kept pictures of one split of a download, decoded on access."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import overload

import numpy as np
import pyarrow.compute as pc

from hdm.data.shards import ImageReader
from hdm.data.tables import num_shards, read_table, shard_name
from hdm.errors import DamagedError
from hdm.pictures.decoding import Decoders
from hdm.pictures.reading import BadImage
from hdm.store import Output

HELD_OUT = ("held_out", "validation")  # the second if nothing was held out
SAMPLE_COLUMNS = ("key", "status", "offset", "bytes", "sha256")


class KeptPictures(Sequence[np.ndarray]):
    """Pictures (H, W, 3) uint8 in order of the download. Safe to use from several threads.

    Args:
        download, filter: outputs of these stages.
        split: "train", "validation" or "held_out".
        decoders: their work has to be `pixels`.
        count: use only the first N pictures; None: all.
    """

    def __init__(
        self,
        download: Output,
        filter: Output,
        split: str,
        decoders: Decoders,
        count: int | None = None,
    ) -> None:
        self.reader = ImageReader(download)
        self.decoders = decoders
        self.places = list(islice(_places(download, filter, split), count))

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, number: slice) -> list[np.ndarray]: ...
    def __getitem__(self, number: int | slice) -> np.ndarray | list[np.ndarray]:
        """One picture, or several.

        Raises:
            DamagedError: it cannot be decoded, though it could when it was filtered.
        """
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        place = self.places[number]
        try:
            data = self.reader.read(*place)
            return self.decoders.ask(f"{number} of the kept ones", data).arrays[0]
        except BadImage as error:
            path = self.reader.download.path / shard_name("images", place[0], "tar")
            raise DamagedError(
                f"a kept picture cannot be decoded: {error.message}",
                where=path,
                do="run the same command again",
            ) from error


def held_out_pictures(
    download: Output, filter: Output, decoders: Decoders, count: int
) -> KeptPictures:
    """The first `count` pictures that training never sees: the held-out ones, or the validation
    split if there are none. Empty if both are.
    """
    # If nothing is held out, the validation split serves, which training has not seen either.
    for split in HELD_OUT:
        pictures = KeptPictures(download, filter, split, decoders, count)
        if len(pictures):
            break
    return pictures


def _places(download: Output, filter: Output, split: str) -> list[tuple[int, int, int, str]]:
    """Shard, offset, length in bytes and sha256 of each picture."""
    places = []
    for shard in range(num_shards(filter, "scores")):
        scores = read_table(filter.file(shard_name("scores", shard)), ["key", "split"])
        keys = scores.filter(pc.equal(scores["split"], split))["key"]
        samples = read_table(download.file(shard_name("samples", shard)), SAMPLE_COLUMNS)
        for row in samples.filter(pc.is_in(samples["key"], keys.combine_chunks())).to_pylist():
            if row["status"] == "ok":
                places.append((shard, row["offset"], row["bytes"], row["sha256"]))
    return places
