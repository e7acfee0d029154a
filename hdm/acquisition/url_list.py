"""Read lists of URLs: Parquet, CSV, TSV, JSONL or text files."""

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
    """A row of a list: its URL, if any, and `source`: the URL, or else the name of the row."""

    url: str | None
    source: str
    captions: tuple[str, ...]
    licence: str | None


def one_item_a_url(
    rows: Callable[[Inventory], Iterable[ListedUrl]], repeated: frozenset[str], inventory: Inventory
) -> Iterator[Item]:
    """Items of a list in order of their first rows, with the captions of all their rows.

    Args:
        rows: reads the list. If URLs are repeated, the list is read twice and the captions of these
            URLs are held in memory.
        repeated: keys of the repeated URLs.
        inventory: records what becomes of the rows.
    """
    several: dict[str, dict[str, None]] = {}
    # An inventory to be thrown away: the first reading must not count rows that the second one
    # counts.
    for row in rows(Inventory()) if repeated else ():
        key = key_of(row.source)
        if key in repeated:
            several.setdefault(key, {}).update(dict.fromkeys(row.captions))
    for row in rows(inventory):
        key = key_of(row.source)
        if key not in repeated:
            yield Item(key, row.source, row.captions, row.licence, None if row.url else _no_url)
        # The first row of a repeated URL takes all of its captions; the others make no item.
        elif (captions := several.pop(key, None)) is not None:
            yield Item(key, row.source, tuple(captions), row.licence, None)


class UrlList:
    """One list, or the parts of a list in order.

    A repeated URL is one item with the captions of all its rows. To find repeated URLs the list is
    first read once, with 8 bytes of memory a row.
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
            has_captions = len(columns) > 2
            others = [] if has_captions else [name for name in known if name not in columns]
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
        """Files that are not empty, their columns, and the columns of URL, licence and captions."""
        parts = []
        for path in self.paths:
            known = column_names(path, self.settings.url_column, self.settings.encoding)
            if known:
                parts.append((path, known, self._choose(path, known)))
        return parts

    def _choose(self, path: Path, known: list[str]) -> list[str | None]:
        url = need_column(self.settings.url_column, known, "url_column", path)
        if path.suffix.lower() == ".txt":
            return [url, None]
        captions = caption_columns(self.settings, known, path)
        return [url, licence_column(known), *captions]

    @cached_property
    def _survey(self) -> Survey:
        return survey(self._urls())

    def _urls(self) -> Iterator[Any]:
        """The value of the URL column in every row; None for a damaged row."""
        for path, _, columns in self._parts:
            for _, row in read_rows(path, columns[:1], self.settings.encoding):
                yield row[0] if row else None


def _no_url() -> bytes:
    raise Unreadable("no_url", "the row has no URL")
