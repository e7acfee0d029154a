"""One picture asked for: where it is, what is said of it, and how to get its bytes."""

from __future__ import annotations

import difflib
import hashlib
import logging
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hdm.config import DownloadSettings
from hdm.errors import InputError

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
LICENCE_COLUMNS = ("licence", "license")

log = logging.getLogger(__name__)


class Unreadable(Exception):  # noqa: N818  (a verdict on one item, not a failure of the program)
    """An item that cannot be had: a status word, and a sentence with no time, address or port in it."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Item:
    """One picture of a source.

    Args:
        key: first 16 hex digits of the sha256 of `source`; a repeated one has its ordinal behind it, as "#1".
        source: URL, or path relative to the source.
        caption: as given; None if there is none.
        licence: as given; None if there is none.
        load: gives the bytes or raises Unreadable; None: they are to be fetched from the URL. To be called before the next
            item is taken.
    """

    key: str
    source: str
    caption: str | None = None
    licence: str | None = None
    load: Callable[[], bytes] | None = None


class Reader(Protocol):
    """A source that can be read again and again, in one order."""

    @property
    def fetched(self) -> bool:
        """Whether its items are URLs to be fetched."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the content, wherever it lies."""
        ...

    def total(self) -> int | None:
        """How many items there are, if that is cheap to know."""
        ...

    def items(self) -> Iterator[Item]:
        """The items in order, with bounded memory."""
        ...


def key_of(source: str, ordinal: int = 0) -> str:
    """The key of a URL or path, and of its repetitions."""
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{digest}#{ordinal}" if ordinal else digest


class Keys:
    """Gives items their keys, in order.

    Args:
        repeated: keys known to come more than once, so that no others need be remembered; None: not known.
    """

    def __init__(self, repeated: frozenset[str] | None = None) -> None:
        self.repeated, self.seen = repeated, Counter[str]()

    def give(self, source: str) -> str:
        """The key of the next item."""
        key = key_of(source)
        if self.repeated is not None and key not in self.repeated:
            return key
        self.seen[key] += 1
        return key_of(source, self.seen[key] - 1)


def survey(urls: Iterable[Any]) -> tuple[int, frozenset[str]]:
    """How many URLs there are, and the keys that come more than once; takes 8 bytes a URL."""
    hashes = array("Q")
    for url in urls:
        text = as_text(url)
        hashes.append(int(key_of(text.strip()), 16) if text else 0)
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    return len(hashes), frozenset(f"{value:016x}" for value in values[counts > 1].tolist())


def as_text(value: Any) -> str | None:
    """A caption, licence or URL out of somebody's table as text that any table can hold, or None if there is none.

    Bytes that are not UTF-8 are replaced; of a list the first text is taken; an empty text is none.
    """
    if isinstance(value, list | tuple):
        value = next((entry for entry in map(as_text, value) if entry), None)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or isinstance(value, dict) or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).removeprefix("\ufeff").encode("utf-8", "replace").decode()
    return text if text.strip() else None


def texts(values: Iterable[Any]) -> tuple[str | None, ...]:
    """A row of somebody's table as texts."""
    return tuple(map(as_text, values))


def need_column(name: str, known: Iterable[str], setting: str, where: object) -> str:
    """The column's name, if it is there.

    Raises:
        InputError: it is not; the nearest one is named.
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


def caption_column(settings: DownloadSettings, known: Iterable[str], where: object) -> str | None:
    """The column with captions; None, said aloud, if there is none of the usual name and no other was asked for.

    Raises:
        InputError: a column was named that is not there.
    """
    columns = list(known)
    usual = DownloadSettings.model_fields["caption_column"].default
    if settings.caption_column == usual and usual not in columns:
        log.warning(
            "no column %r in %s: the pictures come without captions (columns: %s)",
            usual,
            where,
            ", ".join(columns),
        )
        return None
    return need_column(settings.caption_column, columns, "caption_column", where)


def read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a picture's file.

    Raises:
        Unreadable: it is not there, larger than `max_bytes`, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise Unreadable("missing_file", "there is no such file") from error
    except OSError as error:
        raise Unreadable("unreadable_file", f"cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def too_large(max_bytes: int) -> Unreadable:
    """The refusal of what is longer than allowed."""
    return Unreadable("too_large", f"more than {max_bytes} bytes")
