"""Data sets that Hugging Face's `datasets` reads: from the hub, saved to disk, Parquet or picture folders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from hdm.acquisition import fingerprints
from hdm.acquisition.items import (
    LICENCE_COLUMNS,
    Item,
    Keys,
    Unreadable,
    as_text,
    caption_column,
    need_column,
    read_file,
    survey,
    too_large,
)
from hdm.config import DownloadSettings
from hdm.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SAVED = ("state.json", "dataset_dict.json")  # one of them is in what save_to_disk wrote


class DataSet:
    """One split of a data set, in a local folder or on the hub (`org/name` or `org/name@revision`).

    Pictures come from the image column; where there is none but a column of URLs, these are fetched.
    """

    def __init__(self, source: str, settings: DownloadSettings) -> None:
        self.source, self.settings = source, settings
        self.folder = Path(source).expanduser()

    def fingerprint(self) -> dict[str, Any]:
        if self.folder.is_dir():
            files = sorted(
                path
                for path in self.folder.rglob("*")
                if path.is_file() and not path.name.startswith(".")
            )
            return fingerprints.tree(
                (path.relative_to(self.folder).as_posix(), path) for path in files
            )
        return {"name": self.source, "revision": _hub_revision(self.source)}

    @property
    def fetched(self) -> bool:
        return self._columns[1]

    def total(self) -> int | None:
        return len(self._rows) if hasattr(self._rows, "__len__") else None

    def items(self) -> Iterator[Item]:
        columns, fetched = self._columns
        rows = _undecoded(self._rows.select_columns([name for name in columns if name]), columns[0])
        keys = Keys(survey(row[columns[0]] for row in rows)[1]) if fetched else Keys(frozenset())
        for number, row in enumerate(rows):
            value, caption, licence = (row[name] if name else None for name in columns)
            url = as_text(value) if fetched else None
            source = url.strip() if url else f"{self.settings.split}/{number}"
            load = None if url else partial(_content, value, self.settings.max_bytes)
            yield Item(keys.give(source), source, as_text(caption), as_text(licence), load)

    @cached_property
    def _columns(self) -> tuple[tuple[str, str | None, str | None], bool]:
        """The columns of picture or URL, caption and licence; and whether the first holds URLs."""
        settings = self.settings
        known = list(self._rows.column_names or next(iter(self._rows), {}))
        fetched = settings.image_column not in known and settings.url_column in known
        picture = (
            settings.url_column
            if fetched
            else need_column(settings.image_column, known, "image_column", self.source)
        )
        licence = next((name for name in LICENCE_COLUMNS if name in known), None)
        return (picture, caption_column(settings, known, self.source), licence), fetched

    @cached_property
    def _rows(self) -> Dataset | IterableDataset:
        try:
            return self._load()
        except (OSError, ValueError) as error:
            raise InputError(
                f"the data set's split {self.settings.split!r} cannot be loaded: {str(error).splitlines()[0]}",
                where=self.source,
                do="look at the name, download.split, and the network (what was loaded once is found offline)",
            ) from error

    def _load(self) -> Any:
        from datasets import load_dataset, load_from_disk

        if any((self.folder / name).is_file() for name in SAVED):
            saved = load_from_disk(str(self.folder))
            if not isinstance(saved, dict):
                return saved
            if self.settings.split not in saved:
                raise ValueError(f"its splits are {', '.join(saved)}")
            return saved[self.settings.split]
        if self.folder.is_dir():
            # Streamed: nothing is copied to a cache.
            return load_dataset(
                str(self.folder.resolve()), split=self.settings.split, streaming=True
            )
        return load_dataset(
            self.source.partition("@")[0],
            split=self.settings.split,
            revision=_hub_revision(self.source),
        )


def _undecoded(rows: Any, column: str) -> Any:
    """The rows with pictures as the bytes that they are."""
    from datasets import Image

    is_picture = isinstance((rows.features or {}).get(column), Image)
    return rows.cast_column(column, Image(decode=False)) if is_picture else rows


@lru_cache
def _hub_revision(source: str) -> str:
    """The commit that a hub name means now."""
    from datasets import load_dataset_builder

    name, _, revision = source.partition("@")
    try:
        builder = load_dataset_builder(name, revision=revision or None)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no folder of that name here, and no such data set can be had from the hub: {str(error).splitlines()[0]}",
            where=source,
            do="look at download.source; a hub name is org/name or org/name@revision",
        ) from error
    return str(builder.hash)


def _content(value: Any, max_bytes: int) -> bytes:
    """The bytes of a picture as a data set holds it: bytes, or a path, or a mapping of both."""
    data, place = (
        (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    )
    if isinstance(data, str):
        data, place = None, data
    if data is None and place and "://" in place:
        with fsspec.open(place, "rb") as file:  # a member of an archive
            data = file.read(max_bytes + 1)
    elif data is None and place:
        return read_file(Path(place), max_bytes)
    if not isinstance(data, bytes):
        raise Unreadable("no_picture", "the row has no picture")
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data
