"""Fetch a URL list that is itself on the web."""

from __future__ import annotations

import tempfile
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

from yarl import URL

from hdm.acquisition.fetch import BlockingFetcher
from hdm.acquisition.items import Unreadable
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.tabular import TABLE_SUFFIXES
from hdm.errors import InputError

SCHEMES = ("http://", "https://")


@lru_cache
def fetched_list(address: str, settings: DownloadSettings) -> Path:
    """The list as a file, fetched once in each process with the limits for pictures
    (`download.max_bytes`, …).

    Raises:
        InputError: it cannot be fetched, or its name is not that of a table.
    """
    try:
        name = PurePosixPath(URL(address).path).name
    except ValueError:
        name = ""
    # Readers are chosen by the suffix.
    if PurePosixPath(name).suffix.lower() not in TABLE_SUFFIXES:
        raise InputError(
            "the source's address names no URL list",
            where=address,
            do=(
                f"give one whose path ends in {', '.join(TABLE_SUFFIXES)}; fetch other sources"
                " yourself"
            ),
        )
    with BlockingFetcher(settings, {}) as fetcher:
        try:
            data = fetcher.fetch(address)
        except Unreadable as refusal:
            raise InputError(
                f"the URL list cannot be fetched: {refusal.message}",
                where=address,
                do=(
                    "look at download.source; a list above download.max_bytes has to be fetched by"
                    " hand"
                ),
            ) from None
    # A folder for each list, since two may have the same name.
    path = Path(tempfile.mkdtemp(dir=_folder().name), name)
    path.write_bytes(data)
    return path


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """The folder of fetched lists, removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="hdm-lists-")
