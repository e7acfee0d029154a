"""Lists of URLs: Parquet, CSV, TSV, JSONL or text files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from hdm.acquisition import fingerprints
from hdm.acquisition.items import (
    LICENCE_COLUMNS,
    Item,
    Keys,
    Unreadable,
    caption_column,
    need_column,
    survey,
    texts,
)
from hdm.acquisition.tabular import column_names, read_rows
from hdm.config import DownloadSettings


class UrlList:
    """One list, or the parts of one in order.

    It is read twice: first to count its rows and find the URLs that come more than once, which takes 8 bytes a row.
    """

    fetched = True

    def __init__(self, paths: list[Path], settings: DownloadSettings) -> None:
        self.paths, self.settings = paths, settings

    def fingerprint(self) -> dict[str, Any]:
        return {"sha256": [fingerprints.whole(path) for path in self.paths]}

    def total(self) -> int:
        return self._survey[0]

    def items(self) -> Iterator[Item]:
        keys = Keys(self._survey[1])
        for path, names in self._parts:
            for number, (url, caption, licence) in enumerate(map(texts, read_rows(path, names)), 1):
                source = url.strip() if url else f"{path.name}:{number}"
                yield Item(keys.give(source), source, caption, licence, None if url else _no_url)

    @cached_property
    def _parts(self) -> list[tuple[Path, list[str | None]]]:
        """The files that are not empty, and their columns of URL, caption and licence."""
        known = ((path, column_names(path, self.settings.url_column)) for path in self.paths)
        return [(path, self._choose(path, names)) for path, names in known if names]

    def _choose(self, path: Path, known: list[str]) -> list[str | None]:
        url = need_column(self.settings.url_column, known, "url_column", path)
        if path.suffix.lower() == ".txt":
            return [url, None, None]
        return [
            url,
            caption_column(self.settings, known, path),
            next((name for name in LICENCE_COLUMNS if name in known), None),
        ]

    @cached_property
    def _survey(self) -> tuple[int, frozenset[str]]:
        """Number of rows, and the keys that come more than once."""
        return survey(row[0] for path, names in self._parts for row in read_rows(path, names[:1]))


def _no_url() -> bytes:
    raise Unreadable("no_url", "the row has no URL")
