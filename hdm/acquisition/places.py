"""Read the places that rows of other people's data sets name: on the web, or in the data set's own
folder.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec

from hdm.acquisition.items import DAMAGE, Unreadable, Url, read_file, too_large

WEB = ("http", "https")
ARCHIVES = ("zip", "tar")
# zipfile's own: RuntimeError where a member is encrypted or compressed in a way that it lacks.
BROKEN = (*DAMAGE, ValueError, KeyError, zipfile.BadZipFile, RuntimeError)


def read_place(place: str, folders: Sequence[Path], max_bytes: int) -> bytes | Url:
    """Read the place that a row names: the bytes of a file, or a URL that is still to be fetched.

    Args:
        place: a URL, a `file://` address, a path (relative to the first folder), or a member of an
            archive as `datasets` writes it: `zip://a.png::/folder/archive.zip`.
        folders: absolute paths of the data set's folders; files elsewhere are not read.
        max_bytes: a longer file is refused.

    Raises:
        Unreadable: the place is elsewhere, or cannot be read.
    """
    inner, chained, outer = place.rpartition("::")
    scheme = _scheme(outer)
    if chained:
        return _member(inner, outer, folders, max_bytes)
    if scheme in WEB:
        return Url(place.strip())
    return read_file(_own_file(outer, folders), max_bytes)


def _scheme(place: str) -> str:
    return place.strip().partition("://")[0].lower() if "://" in place else ""


def _own_file(place: str, folders: Sequence[Path]) -> Path:
    scheme = _scheme(place)
    if scheme == "file":
        address = urlsplit(place.strip())
        if address.netloc not in ("", "localhost"):
            raise Unreadable("refused_path", "the row names a file of another machine")
        place = unquote(address.path)
    elif scheme:
        raise Unreadable("refused_scheme", "only http, https and files of the data set are read")
    # A zero byte would make Python's file functions raise a ValueError.
    if "\0" not in place:
        # Checked twice: first as text, so that `..` leads nowhere, then with links followed.
        path = Path(os.path.normpath(folders[0] / place))
        if any(path.is_relative_to(folder) and path != folder for folder in folders):
            return _without_way_out(path, folders)
    raise Unreadable("refused_path", "the row names a file outside the data set's folder")


def _without_way_out(path: Path, folders: Sequence[Path]) -> Path:
    """The path, unless links on its way lead out of the folders. Data sets are not trusted."""
    target = path.resolve()
    if not any(target.is_relative_to(folder) for folder in folders):
        raise Unreadable("refused_link", "the row names a link that leads out of the data set")
    return path


def _member(inner: str, outer: str, folders: Sequence[Path], max_bytes: int) -> bytes:
    # fsspec would chain any protocol, such as `filecache` or `github`.
    if any(_scheme(part) not in ARCHIVES for part in inner.split("::")):
        raise Unreadable("refused_scheme", "only members of zip and tar files are read")
    archive = _own_file(outer, folders)
    try:
        with fsspec.open(f"{inner}::{archive}", "rb") as file:
            # A member may expand to far more than its archive: no more than is allowed is read.
            data: bytes = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise Unreadable("missing_file", "there is no such member or archive") from error
    except BROKEN as error:
        raise Unreadable("unreadable_file", "the archive cannot be read") from error
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data
