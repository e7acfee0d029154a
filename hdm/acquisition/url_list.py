"""Lists of URLs: Parquet, CSV, TSV, JSONL or text files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hdm.acquisition import source_fingerprints
from hdm.acquisition.inventory import Fate, Inventory
from hdm.acquisition.items import (
    Item,
    Survey,
    Unreadable,
    caption_columns,
    licence_column,
    need_column,
    survey,
)
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.tabular import column_names, read_rows, wordy_columns
from hdm.acquisition.texts import as_text, captions_in_fields
from hdm.keys import key_of


@dataclass(frozen=True)
class ListedUrl:
    """A row of a list: its URL, if it has one, and `source`, the URL or what names the row."""

    url: str | None
    source: str
    captions: tuple[str, ...]
    licence: str | None


def one_item_a_url(
    rows: Callable[[Inventory], Iterable[ListedUrl]], repeated: frozenset[str], inventory: Inventory
) -> Iterator[Item]:
    """Items of a list in order of their first rows, with the captions of all rows.

    Args:
        rows: reads the list; where URLs come several times it is read twice, and the captions of
            these URLs are kept in memory.
        repeated: keys of these URLs.
        inventory: what becomes of the rows.
    """
    several: dict[str, dict[str, None]] = {}
    for row in rows(Inventory()) if repeated else ():
        key = key_of(row.source)
        if key in repeated:
            several.setdefault(key, {}).update(dict.fromkeys(row.captions))
    for row in rows(inventory):
        key = key_of(row.source)
        if key not in repeated:
            yield Item(key, row.source, row.captions, row.licence, None if row.url else _no_url)
        elif (captions := several.pop(key, None)) is not None:
            yield Item(key, row.source, tuple(captions), row.licence, None)


class UrlList:
    """One list, or the parts of one in order.

    A URL that comes several times is one item with the captions of all its rows.

    It is read first to count its rows and find such URLs, which takes 8 bytes a row.
    """

    fetched = True

    def __init__(self, paths: list[Path], settings: DownloadSettings) -> None:
        self.paths = paths
        self.settings = settings

    def fingerprint(self) -> dict[str, Any]:
        return {"sha256": [source_fingerprints.whole(path) for path in self.paths]}

    def total(self) -> int:
        return self._survey.total

    def items(self, inventory: Inventory | None = None) -> Iterator[Item]:
        return one_item_a_url(self._rows, self._survey.repeated, inventory or Inventory())

    def _rows(self, inventory: Inventory) -> Iterator[ListedUrl]:
        encoding = self.settings.encoding
        for path, known, columns in self._parts:
            others = [] if columns[2:] else [name for name in known if name not in columns]
            inventory.columns(known, columns, path.name, wordy_columns(path, others, encoding))
            for number, row in read_rows(path, columns, encoding):
                place = f"{path.name}:{number}"
                if row is None:
                    inventory.leave("line", Fate.LOST, place, "it is no JSON object")
                    yield ListedUrl(None, place, (), None)
                    continue
                inventory.take("line")
                address = as_text(row[0])
                licence = as_text(row[1])
                url = address.strip() if address else None
                captions = captions_in_fields(row[2:], encoding)
                yield ListedUrl(url, url or place, inventory.captions(captions, place), licence)

    @cached_property
    def _parts(self) -> list[tuple[Path, list[str], list[str | None]]]:
        """The files that are not empty, their columns, and those of URL, licence and captions."""
        url = self.settings.url_column
        encoding = self.settings.encoding
        known = ((path, column_names(path, url, encoding)) for path in self.paths)
        return [(path, names, self._choose(path, names)) for path, names in known if names]

    def _choose(self, path: Path, known: list[str]) -> list[str | None]:
        url = need_column(self.settings.url_column, known, "url_column", path)
        if path.suffix.lower() == ".txt":
            return [url, None]
        captions = caption_columns(self.settings, known, path)
        return [url, licence_column(known), *captions]

    @cached_property
    def _survey(self) -> Survey:
        return survey(
            row[0] if row else None
            for path, _, columns in self._parts
            for _, row in read_rows(path, columns[:1], self.settings.encoding)
        )


def _no_url() -> bytes:
    raise Unreadable("no_url", "the row has no URL")
