"""Detect the kind of a source and choose its reader."""

from __future__ import annotations

import difflib
import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hdm.acquisition.data_set import SAVED, DataSet
from hdm.acquisition.emoji import EmojiPictures
from hdm.acquisition.folder import Folder
from hdm.acquisition.reader import Reader
from hdm.acquisition.remote_list import SCHEMES, fetched_list
from hdm.acquisition.settings import DownloadSettings, SourceKind
from hdm.acquisition.tabular import TABLE_SUFFIXES
from hdm.acquisition.tars import Tars
from hdm.acquisition.tree import walk
from hdm.acquisition.url_list import UrlList
from hdm.errors import ConfigError, InputError
from hdm.secrets import resolved

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET = ".parquet"


def open_source(
    source: str, kind: SourceKind, settings: DownloadSettings
) -> tuple[SourceKind, Reader]:
    """The kind of a source and its reader.

    Args:
        source: a URL list, folder, tars or data set, or a reference to a secret that names one.
            Lists and tars may be globs, also with {000..099}.
        kind: how to read it; "auto": detect it.
        settings: columns, metadata file, limits.

    Raises:
        ConfigError: no source is set.
        InputError: it does not exist, or is not of the given kind.
    """
    if not source:
        raise ConfigError(
            "download.source is not set",
            do="--set download.source=PATH (a URL list, a folder, tars, or a data set's name)",
        )
    given = source
    source = resolved(source)
    if source.startswith(SCHEMES) and kind in ("auto", "urls"):
        return "urls", UrlList([fetched_list(source, settings)], settings)
    place = Path(source).expanduser()
    try:
        detected = _detect(source, place, settings) if kind == "auto" else kind
        return detected, _reader(detected, given, source, place, settings)
    except OSError as error:  # no permission, or not a valid file name
        raise InputError(f"the source cannot be read: {error.strerror}", where=place) from error


def _reader(
    kind: SourceKind, given: str, source: str, place: Path, settings: DownloadSettings
) -> Reader:
    match kind:
        case "emoji":
            return EmojiPictures(source, settings)
        case "urls":
            return UrlList(_files(source), settings)
        case "tars":
            return Tars(_tars(source, place, settings), settings, place if place.is_dir() else None)
        case "dataset" if source.lower().endswith(PARQUET):
            return DataSet(source, settings, _files(source))
        case "dataset":
            # The name as given, which records show: the source itself may come from a secret.
            return DataSet(source, settings, name=given)
        case "folder" if place.is_dir():
            return Folder(place, settings)
        case "folder" if place.exists():
            raise InputError(
                "the source is a file, not a folder",
                where=place,
                do="set download.kind=auto, or name its folder",
            )
        case _:
            raise _missing(place)


def _detect(source: str, place: Path, settings: DownloadSettings) -> SourceKind:
    if place.is_dir():
        return _detect_folder(place, settings)
    if source.lower().endswith(TAR_SUFFIXES):
        return "tars"
    if source.lower().endswith(PARQUET) and _holds_pictures(_files(source)[0], settings):
        return "dataset"
    if source.lower().endswith(TABLE_SUFFIXES):
        return "urls"
    if place.exists():
        known = ", ".join((*TABLE_SUFFIXES, *TAR_SUFFIXES))
        raise InputError(
            f"a source is a folder, or a file that ends in one of {known}", where=place
        )
    # Anything else may be a name on the hub, unless it looks like a path.
    if (
        source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or (place.parent != Path() and place.parent.is_dir())
    ):
        raise _missing(place)
    return "dataset"


def _holds_pictures(path: Path, settings: DownloadSettings) -> bool:
    """Whether a Parquet file has a column of bytes and no column of URLs."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False  # the reader says what is wrong with it
    return settings.url_column not in schema.names and any(
        _holds_bytes(field.type) for field in schema
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _detect_folder(place: Path, settings: DownloadSettings) -> SourceKind:
    """A folder of pictures, unless it has no pictures but tars or tables of them."""
    # First, since a saved data set may hold other files too.
    if any((place / name).is_file() for name in SAVED):
        return "dataset"
    names = [name.lower() for name in walk(place, settings.follow_links).files]
    tars = any(name.endswith(TAR_SUFFIXES) for name in names)
    tables = any(name.endswith(PARQUET) for name in names)
    if not (tars or tables) or Folder(place, settings).holds_pictures():
        return "folder"
    return "tars" if tars else "dataset"


def _files(pattern: str) -> list[Path]:
    """The files matched by a name, a glob, or a name with {000..099}, in order.

    Raises:
        InputError: there are none.
    """
    plain = Path(pattern).expanduser()
    if plain.is_file():
        return [plain]
    from webdataset.shardlists import expand_urls  # its import takes seconds

    files: dict[Path, None] = {}  # each once, in order
    for part in expand_urls(pattern):
        expanded = str(Path(part).expanduser())
        # Path.glob takes no absolute patterns.
        for name in sorted(glob.glob(expanded, recursive=True)):  # noqa: PTH207
            if Path(name).is_file():
                files[Path(name)] = None
    if not files:
        raise _missing(plain)
    return list(files)


def _tars(source: str, place: Path, settings: DownloadSettings) -> list[Path]:
    if not place.is_dir():
        return _files(source)
    files = walk(place, settings.follow_links).files
    tars = sorted(path for name, path in files.items() if name.lower().endswith(TAR_SUFFIXES))
    if not tars:
        raise InputError("there are no tars in the folder", where=place)
    return tars


def _missing(place: Path) -> InputError:
    beside = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, beside, n=1, cutoff=0.6)
    guess = f"; did you mean {place.parent / near[0]}?" if near else ""
    return InputError(
        f"the source is not there{guess}",
        where=place,
        do=(
            "name a file, a folder or a data set that is there: --set download.source=PATH, or"
            " --source PATH of hdm bootstrap"
        ),
    )
