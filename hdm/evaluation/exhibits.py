"""Example pictures for the report, kept ones and rejected ones by reason, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from hdm.closing import Closing
from hdm.curation.criteria import words
from hdm.data.shards import ImageReader
from hdm.data.tables import num_shards, read_table, read_tables, shard_name
from hdm.evaluation.settings import Pipeline
from hdm.keys import Key
from hdm.pictures.decoding import Answer, Asked, Decoders, picture_cost, pixels
from hdm.pictures.reading import BadImage
from hdm.redaction import redacted
from hdm.store import Output

SIDE_PX = 144  # longer side of an example
AS_PNG_PX = 128  # pictures up to this side are PNGs, larger ones JPEGs
SAMPLE_COLUMNS = (
    "key",
    "source",
    "status",
    "error",
    "captions",
    "offset",
    "bytes",
    "sha256",
    "width",
    "height",
)
PLACE_COLUMNS = ("shard", "offset", "bytes", "sha256")
SCORE_COLUMNS = ("key", "kept", "reason", "detail", "split")
STATUSES = {
    "not_image": "not a picture",
    "unsupported": "in a format that is not read",
    "too_many_scans": "a JPEG of too many scans",
    "too_many_frames": "an animation of too many frames",
    "too_much_memory": "takes too much memory",
    "too_slow": "takes too long to decode",
    "crashes": "crashes the program that decodes it",
    "http_404": "not there (404)",
    "corrupt": "the file is damaged",
    "cut_off": "the connection broke off within the file",
}


@dataclass(frozen=True)
class Exhibit:
    """One picture with its text; `image` is a data URI, or None if there are no pixels to show."""

    image: str | None
    caption: str
    note: str = ""
    original: str | None = None


@dataclass(frozen=True)
class Rejection:
    """All pictures refused for one reason, and some of them."""

    reason: str
    explanation: str
    stage: str
    count: int
    exhibits: list[Exhibit]


class Exhibition(Closing):
    """Find and read example pictures of a finished download. Use it in a `with` block.

    Args:
        pipeline: says how pictures are decoded.
        download: the download's output.
        filter: the filter's output, or None if it was not made.
    """

    def __init__(self, pipeline: Pipeline, download: Output, filter: Output | None) -> None:
        self.reader = ImageReader(download)
        self.decoders = Decoders(pipeline.images, pixels, pipeline.threads)
        shards = []
        for number in range(num_shards(download, "samples")):
            samples = read_table(download.file(shard_name("samples", number)), SAMPLE_COLUMNS)
            shards.append(samples.append_column("shard", pa.array([number] * len(samples))))
        # Tables alone; pictures are read from the tars when they are shown.
        self.samples = pa.concat_tables(shards)
        self.scores = read_tables(filter, "scores", SCORE_COLUMNS) if filter else None

    def close(self) -> None:
        self.decoders.close()
        self.reader.close()

    def funnel(self) -> list[dict[str, Any]]:
        """Name and count of the items that are left after each step."""
        counts = {
            "listed": len(self.samples),
            "downloaded": _counts(self.samples, "status").get("ok", 0),
        }
        if self.scores is not None:
            counts["kept"] = _counts(self.scores, "kept").get(True, 0)
            splits = _counts(self.scores, "split")
            for name in ("train", "validation", "held_out"):
                if name in splits:
                    counts[name.replace("_", " ")] = splits[name]
        return [{"name": name, "count": count} for name, count in counts.items()]

    def kept(self, count: int) -> list[Exhibit]:
        """A random choice of the kept pictures: the first by key, since keys are hashes."""
        if self.scores is None:
            return []
        samples = self._of_keys(row["key"] for row in _first(self.scores, pc.field("kept"), count))
        pairs = zip(samples, self._images(samples), strict=True)
        return [Exhibit(image, _caption(sample)) for sample, image in pairs]

    def rejections(self, count: int) -> list[Rejection]:
        """Refused items by reason, the most frequent reason first, with up to `count` examples
        each.
        """
        rejections = []
        for status, number in _counts(self.samples, "status").items():
            if status != "ok":
                exhibits = self._failures(status, count)
                rejections.append(
                    Rejection(status, _explanation(status), "download", number, exhibits)
                )
        reasons = {} if self.scores is None else _counts(self.scores, "reason")
        for reason, number in reasons.items():
            if reason is not None:
                exhibits = self._refusals(reason, count)
                rejections.append(
                    Rejection(reason, _explanation(reason), "filter", number, exhibits)
                )
        return sorted(rejections, key=lambda rejection: (-rejection.count, rejection.reason))

    def images(self, keys: Iterable[Key]) -> list[str | None]:
        """Data URIs of pictures; None for one that cannot be decoded."""
        return self._images(self._of_keys(keys))

    def _failures(self, status: str, count: int) -> list[Exhibit]:
        rows = _first(self.samples, pc.field("status") == status, count)
        return [Exhibit(None, _name(row), row["error"] or "") for row in rows]

    def _refusals(self, reason: str, count: int) -> list[Exhibit]:
        rows = _first(self.scores, pc.field("reason") == reason, count)
        samples = self._of_keys(row["key"] for row in rows)
        images = self._images(samples)
        exhibits = []
        if reason.startswith("duplicate"):
            # The detail of a copy is its original's key.
            originals = self.images(row["detail"] for row in rows)
            for image, original in zip(images, originals, strict=True):
                exhibits.append(Exhibit(image, "copy and original", "", original))
            return exhibits
        for sample, image, row in zip(samples, images, rows, strict=True):
            caption = _caption(sample) if image else _name(sample)
            exhibits.append(Exhibit(image, caption, row["detail"] or ""))
        return exhibits

    def _of_keys(self, keys: Iterable[Key]) -> list[dict[str, Any]]:
        """Rows of the samples, in the order of the keys."""
        rows = pc.index_in(pa.array(list(keys), pa.string()), value_set=self.samples["key"])
        samples: list[dict[str, Any]] = self.samples.take(rows).to_pylist()
        return samples

    def _images(self, samples: Iterable[Mapping[str, Any]]) -> list[str | None]:
        requests = (self._request(sample) for sample in samples)
        return [_image(answer) for answer in self.decoders.map(requests)]

    def _request(self, sample: Mapping[str, Any]) -> Asked:
        place = [sample[name] for name in PLACE_COLUMNS]
        cost = picture_cost(sample["width"], sample["height"], sample["bytes"])
        return Asked(sample["key"], partial(self.reader.read, *place), cost)


def _image(answer: Future[Answer]) -> str | None:
    try:
        return data_uri(answer.result().arrays[0])
    except BadImage:
        return None


def data_uri(pixels: np.ndarray, side_px: int = SIDE_PX) -> str:
    """A picture (H, W, 3) uint8, reduced to `side_px` where larger, as a data URI."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(picture.size) <= AS_PNG_PX:
        kind = "png"
        picture.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.save(buffer, "JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _counts(table: pa.Table, column: str) -> dict[Any, int]:
    counts = pc.value_counts(table[column])
    return dict(
        zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    )


def _first(table: pa.Table, condition: pc.Expression, count: int) -> list[dict[str, Any]]:
    """The first rows by key that meet a condition."""
    # Select the first k by key without sorting all rows.
    rows = table.filter(condition)
    order = pc.select_k_unstable(rows, k=min(count, len(rows)), sort_keys=[("key", "ascending")])
    first: list[dict[str, Any]] = rows.take(order).to_pylist()
    return first


def _caption(sample: Mapping[str, Any]) -> str:
    """The first caption, or ""."""
    return sample["captions"][0] if sample["captions"] else ""


def _name(sample: Mapping[str, Any]) -> str:
    """The last part of the source, without the query, which may contain a signature."""
    return redacted(sample["source"]).rsplit("/", 1)[-1]


def _explanation(reason: str) -> str:
    return (words() | STATUSES).get(reason, reason.replace("_", " "))
