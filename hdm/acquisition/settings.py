"""Settings of the stage `download`: where pictures come from, and how they are fetched."""

from __future__ import annotations

import codecs
from typing import Annotated, Literal, Protocol

from pydantic import field_validator

from hdm import values
from hdm.pictures.settings import WithImages
from hdm.secrets import SecretReference
from hdm.settings import Settings, runtime, since
from hdm.values import Within

SourceKind = Literal["auto", "urls", "folder", "dataset", "tars", "scenes", "emoji"]


RESPECT: Literal["respect"] = "respect"
SCENES_VERSION = 2
"""Of the embedded data set: raised when the same settings give other pictures or captions."""


class ScenesSettings(Settings):
    """The embedded data set: pictures with known truth, made from a seed."""

    count: Annotated[int, Within(1, 10_000_000)] = 4000
    """Good pictures."""
    seed: values.Seed = 0
    faults: Annotated[float, Within(0, 0.5)] = 0.12
    """Planted bad items (corrupt, duplicate, blurred, mislabelled, …) as a share of `count`."""
    size_px: Annotated[int, Within(16, 2048)] = 64
    """Shorter side."""
    uncaptioned: values.Share = 0.1
    """Share of good pictures served without a caption, for the captioner."""
    subject: Literal["arrow"] | None = since("0.3.0", None)
    """Every picture shows one of these, which no other scene has, in one of four colours."""


class DownloadSettings(Settings):
    # `hdm.acquisition.download.identify` puts a fingerprint of the content in its place.
    source: str = ""
    """A URL list (.parquet, .csv, .jsonl, .txt; also at an http address), a folder of pictures,
    WebDataset tars (a glob), Parquet files of pictures, or a data set's name; for kind emoji the
    address of Noto Emoji's PNG files, or a folder of them. An address with a user or a query is a
    secret and has to be given by reference: env:NAME, file:PATH, block:NAME.
    """
    token: SecretReference | None = runtime(None)
    """Token of the Hugging Face hub for a data set that is not public, also by reference. None: the
    login of the hub's own tools."""
    kind: SourceKind = "auto"
    """How to read `source`; auto: detect it."""
    scenes: ScenesSettings = ScenesSettings()
    """Used if kind is scenes."""
    url_column: str = "url"
    caption_column: str | None = None
    """Column (lists, data sets) or field (metadata files, JSON) with the captions; None: in each
    row the first of `caption`, `captions`, `text` and `prompt` (ignoring case) that has one.
    """
    text_lines: Literal["captions", "one"] = "captions"
    """captions: each line of a text beside a picture is a caption, unless empty lines separate
    paragraphs of one text; one: the whole text is one caption."""
    class_captions: bool = False
    """Caption pictures without captions with the name of their class: their folder (kohya's
    `10_name` without the number), the `.cls` member of a WebDataset, the `label` of a data set."""
    encoding: str | None = None
    """Encoding of texts that are not Unicode, such as cp1251 or shift_jis; None: Windows-1252 if
    that gives plain western text, counted as guessed; other texts are lost."""
    # In no digest, like `max_failed`: a limit decides whether the stage stops, not what it makes.
    max_lost_captions: values.CountOrNone = runtime(0)
    """The stage stops if more captions, or lines and files with captions, are lost."""
    follow_links: bool = True
    """Follow symbolic links in a folder, each folder once. In archives and data sets, links that
    lead outside are always refused."""
    image_column: str = "image"
    """Column of a data set that holds the picture."""
    split: str = "train"
    """Split of a data set."""
    metadata: str | None = None
    """Metadata file of a folder (.jsonl, .json, .csv, .tsv, .parquet), relative to it; None: the
    files called `metadata` in every folder."""
    max_items: values.Count | None = None
    """Use only the first N items; None: all."""
    expected_items: values.Count | None = runtime(None)
    """Number of items in the source, only for `hdm plan` before the source is read."""
    shard_items: Annotated[int, Within(1, 1_000_000)] = 1000
    """Items in each tar shard."""
    max_bytes: values.FileBytes = 50_000_000
    """Larger files are refused."""
    max_failed: values.Share = runtime(0.5)
    """The stage stops if a larger share of the items fails. A rerun with a larger value keeps the
    finished shards.
    """
    reuse: bool = runtime(True)
    """Take pictures of a URL list from the store's finished downloads; false: fetch all of them,
    because pictures have changed at their addresses. A list that is downloaded already also needs
    another `generation`."""
    generation: Annotated[int, Within(0, 1_000_000)] = since("0.3.0", 0)
    """Another number makes another download, which tries again what failed; with `reuse`, it
    fetches nothing else of a URL list. `hdm run --retry-failed` raises it."""
    # `hdm.acquisition.download.identify` adds it to the digests of URL lists where it is respected.
    opt_outs: Literal["respect", "ignore"] = runtime(RESPECT)
    """respect: refuse pictures of a URL list whose sites answer with X-Robots-Tag noai, noimageai,
    noml, noindex, noimageindex or none, for all or for the agent hdm-pipeline."""
    allow_loopback: bool = False
    """Let URLs lead to this machine. For the embedded demo only."""
    retries: values.Retries = 3
    """Retries after 429, 5xx, a time-out or a reset."""
    timeout_sec: values.Seconds = runtime(30.0)
    """Time limit of each attempt."""
    concurrency: values.Workers = runtime(64)
    """Number of concurrent requests, without those that wait for their site: eight times as many
    connections may be open."""

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                codecs.lookup(encoding)
            except LookupError as error:
                raise ValueError("Python knows no such encoding; examples: cp1251, gbk") from error
        return encoding


class Pipeline(WithImages, Protocol):
    """The part of a pipeline that this package reads."""

    @property
    def download(self) -> DownloadSettings: ...
