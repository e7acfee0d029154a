"""Example pictures for the report: kept ones, rejected ones by reason, as images that an HTML page can hold."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hdm.config import Pipeline
from hdm.data.images import BadImage, decode
from hdm.data.shards import ImageReader
from hdm.data.tables import num_shards, read_table, read_tables, shard_name
from hdm.store import Output

SIDE_PX = 144  # longer side of an example
AS_PNG_PX = 128  # up to so many pixels a side nothing is lost
REASONS = {
    "undecodable": "cannot be decoded to the last pixel",
    "too_small": "too small",
    "aspect": "too long or too tall",
    "blurred": "blurred",
    "noisy": "noisy",
    "duplicate": "a copy of another picture",
    "aesthetic": "low aesthetic score",
    "clip_similarity": "the caption does not fit the picture",
    "top_fraction": "not among the best",
    "not_image": "not a picture",
    "http_404": "not there (404)",
    "reset": "the connection broke off",
    "timeout": "no answer in time",
}


@dataclass(frozen=True)
class Exhibit:
    """One picture with what is said of it; `image` is a data URI, or None where there are no pixels to show."""

    image: str | None
    caption: str
    note: str = ""
    original: str | None = None


@dataclass(frozen=True)
class Rejection:
    """All pictures refused for one reason, and some of them."""

    reason: str
    told: str
    stage: str
    count: int
    exhibits: list[Exhibit]


class Exhibition:
    """Finds and reads example pictures of a finished download.

    Args:
        pipeline: says how pictures are decoded.
        download: the download's output.
        filter: the filter's output, or None if it was not made.
    """

    def __init__(self, pipeline: Pipeline, download: Output, filter: Output | None) -> None:
        self.pipeline, self.download = pipeline, download
        self.samples: dict[str, dict] = {}
        for number in range(num_shards(download, "samples")):
            for row in read_table(download.file(shard_name("samples", number))).to_pylist():
                self.samples[row["key"]] = {**row, "shard": number}
        columns = ["key", "kept", "reason", "detail", "split"]
        self.scores = read_tables(filter, "scores", columns).to_pylist() if filter else []

    def kept(self, count: int) -> list[Exhibit]:
        """Some of the kept pictures, drawn by their keys, which are hashes."""
        keys = sorted(row["key"] for row in self.scores if row["kept"])[:count]
        return [Exhibit(image, self.samples[key]["caption"] or "") for key, image in zip(keys, self.images(keys), strict=True)]

    def rejections(self, count: int) -> list[Rejection]:
        """What was refused and why, the most frequent reason first, with up to `count` examples each."""
        failed = [row for row in self.samples.values() if row["status"] != "ok"]
        found = [
            Rejection(status, _told(status), "download", number, self._failures(status, failed, count))
            for status, number in Counter(row["status"] for row in failed).items()
        ]
        refused = [row for row in self.scores if not row["kept"]]
        found += [
            Rejection(reason, _told(reason), "filter", number, self._refusals(reason, refused, count))
            for reason, number in Counter(row["reason"] for row in refused).items()
        ]
        return sorted(found, key=lambda rejection: (-rejection.count, rejection.reason))

    def images(self, keys: Iterable[str]) -> list[str | None]:
        """Data URIs of pictures; None for one that cannot be decoded."""
        with ImageReader(self.download) as reader:
            return [self._image(reader, key) for key in keys]

    def _image(self, reader: ImageReader, key: str) -> str | None:
        row = self.samples[key]
        if row["status"] != "ok":
            return None
        try:
            data = reader.read(row["shard"], row["offset"], row["bytes"])
            return data_uri(decode(data, self.pipeline.images).pixels)
        except BadImage:
            return None

    def _failures(self, status: str, failed: list[dict], count: int) -> list[Exhibit]:
        rows = sorted((row for row in failed if row["status"] == status), key=lambda row: row["key"])[:count]
        return [Exhibit(None, row["source"].rsplit("/", 1)[-1], row["error"] or "") for row in rows]

    def _refusals(self, reason: str, refused: list[dict], count: int) -> list[Exhibit]:
        rows = sorted((row for row in refused if row["reason"] == reason), key=lambda row: row["key"])[:count]
        images = self.images(row["key"] for row in rows)
        if reason != "duplicate":
            captions = [self.samples[row["key"]]["caption"] or "" for row in rows]
            return [Exhibit(image, caption, row["detail"] or "") for image, caption, row in zip(images, captions, rows, strict=True)]
        originals = self.images(row["detail"] for row in rows)
        return [Exhibit(image, "copy and original", "", original) for image, original in zip(images, originals, strict=True)]


def data_uri(pixels: np.ndarray) -> str:
    """A picture (H, W, 3) uint8, reduced to 144 px where larger, as a data URI."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small = max(picture.size) <= AS_PNG_PX
    if small:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=88)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def funnel(samples: Mapping[str, dict], scores: list[dict]) -> list[dict]:
    """How many items are left after each step: what they are called, and how many."""
    steps = [("listed", len(samples)), ("downloaded", sum(row["status"] == "ok" for row in samples.values()))]
    if scores:
        steps.append(("kept", sum(row["kept"] for row in scores)))
        splits = Counter(row["split"] for row in scores if row["kept"])
        steps += [(name.replace("_", " "), splits[name]) for name in ("train", "validation", "held_out") if splits[name]]
    return [{"name": name, "count": count} for name, count in steps]


def _told(reason: str) -> str:
    return REASONS.get(reason, reason.replace("_", " "))
