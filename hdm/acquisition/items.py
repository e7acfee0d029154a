"""Items of a source: a picture's location, its captions, and how to get its bytes."""

from __future__ import annotations

import difflib
import logging
import lzma
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.texts import CAPTION_COLUMNS, as_text, caption_fields
from hdm.errors import InputError
from hdm.keys import Key, key_number, key_of, key_text

PICTURE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
        ".tiff", ".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jxr",
    }
)  # fmt: skip
"""Suffixes of pictures, including formats that are not supported, which get a status. Pictures with
other suffixes are recognised by their first bytes."""
LICENCE_COLUMNS = ("licence", "license")
DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a damaged tar, or damaged compressed bytes, raises."""

log = logging.getLogger(__name__)


class Unreadable(Exception):  # noqa: N818  (a verdict on one item, not a failure of the program)
    """An item that cannot be read: a status word, and a sentence without times, addresses or ports,
    so that it is the same in every run.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class Url(str):
    """An address on the web that is still to be fetched."""


@dataclass(frozen=True)
class Item:
    """One picture of a source.

    Args:
        key: unique in its source.
        source: URL, or path relative to the source.
        captions: all captions that came with it, as given.
        licence: as given; None if there is none.
        load: returns the bytes or a URL to fetch them from, or raises Unreadable. It has to be
            called before the next item is taken. None: `source` is the URL.
    """

    key: Key
    source: str
    captions: tuple[str, ...] = ()
    licence: str | None = None
    load: Callable[[], bytes | Url] | None = None


@dataclass(frozen=True)
class Survey:
    """The number of items in a list of URLs, and the keys of the URLs that occur more than once."""

    total: int
    repeated: frozenset[Key]


def survey(urls: Iterable[Any]) -> Survey:
    """Count the items of a list of URLs, with 8 bytes of memory a row. Each row without a URL is an
    item of its own.
    """
    hashes = array("Q")
    for url in urls:
        text = as_text(url)
        # 0 marks a row without a URL. Other numbers are 64 bits of a sha256 and practically never
        # 0.
        hashes.append(key_number(key_of(text.strip())) if text else 0)
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    without = int(counts[values == 0].sum())
    several = values[(counts > 1) & (values != 0)]
    total = int((values != 0).sum()) + without
    return Survey(total, frozenset(map(key_text, several.tolist())))


def need_column(name: str, known: Iterable[str], setting: str, where: object) -> str:
    """The column's name, if the table has it.

    Raises:
        InputError: it does not; the error names the most similar column.
    """
    columns = list(known)
    if name in columns:
        return name
    lowered = {column.lower(): column for column in columns}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    guess = f"; did you mean {lowered[near[0]]}?" if near else ""
    raise InputError(
        f"there is no column {name!r}{guess}",
        where=where,
        do=f"--set download.{setting}=NAME, one of: {', '.join(columns) or '(none)'}",
    )


def caption_columns(settings: DownloadSettings, known: Iterable[str], where: object) -> list[str]:
    """The columns with captions. In each row the first column with a caption counts.

    The list is empty, with a warning, if no column has a usual name and the settings name none.

    Raises:
        InputError: the settings name a column that does not exist.
    """
    columns = list(known)
    if settings.caption_column is not None:
        return [need_column(settings.caption_column, columns, "caption_column", where)]
    usual = caption_fields(columns, None)
    if not usual:
        log.warning(
            "no column %s in %s, so its pictures have no captions; download.caption_column may"
            " be: %s",
            " or ".join(CAPTION_COLUMNS),
            where,
            ", ".join(columns),
        )
    return usual


def licence_column(known: Iterable[str]) -> str | None:
    """The column with licences, if there is one."""
    columns = list(known)
    return next((name for name in LICENCE_COLUMNS if name in columns), None)


def read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a picture's file.

    Raises:
        Unreadable: it does not exist, is larger than `max_bytes`, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            # One byte more than allowed shows that the file is too large, without reading all of
            # it.
            data = file.read(max_bytes + 1)
    except (FileNotFoundError, ValueError) as error:  # a name with a zero byte is no file's
        raise Unreadable("missing_file", "there is no such file") from error
    except OSError as error:
        raise Unreadable("unreadable_file", f"cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def too_large(max_bytes: int) -> Unreadable:
    """The refusal of a file or body that is too long."""
    return Unreadable("too_large", f"more than {max_bytes} bytes")
