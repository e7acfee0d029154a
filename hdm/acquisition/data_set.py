"""Read data sets with Hugging Face's `datasets`: from the hub, saved to disk, Parquet files or
folders of pictures.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hdm.acquisition import source_fingerprints
from hdm.acquisition.inventory import Inventory
from hdm.acquisition.items import (
    Item,
    Unreadable,
    Url,
    caption_columns,
    licence_column,
    need_column,
    survey,
    too_large,
)
from hdm.acquisition.places import read_place
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.tabular import WORDY_ROWS
from hdm.acquisition.texts import as_text, captions_in, captions_in_fields, may_be_captions
from hdm.acquisition.tree import note_files
from hdm.acquisition.url_list import ListedUrl, one_item_a_url
from hdm.errors import InputError
from hdm.keys import key_of
from hdm.secrets import resolved

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

LABEL = "label"
STATE = "state.json"
SPLITS = "dataset_dict.json"
SAVED = (STATE, SPLITS)
"""`save_to_disk` writes the first for one split, the second for several splits in folders."""


class DataSet:
    """One split of a data set, in a local folder or on the hub (`org/name` or `org/name@revision`),
    or Parquet files of pictures.

    Pictures come from the image column. If there is only a column of URLs, these are fetched.
    """

    def __init__(
        self,
        source: str,
        settings: DownloadSettings,
        files: list[Path] | None = None,
        name: str | None = None,
    ) -> None:
        self.source = source
        self.settings = settings
        self.parquet = files
        self.name = name or source
        self.folder = Path(source).expanduser()

    def fingerprint(self) -> dict[str, Any]:
        if self.parquet:
            return {"sha256": [source_fingerprints.whole(path) for path in self.parquet]}
        if self.folder.is_dir():
            named = []
            for path in sorted(self.folder.rglob("*")):
                within = path.relative_to(self.folder)
                # Nor what lies in a hidden folder, as `.cache`: `datasets` reads neither.
                if path.is_file() and not any(part.startswith(".") for part in within.parts):
                    named.append((within.as_posix(), path))
            return source_fingerprints.tree(named)
        return {"name": self.name, "revision": self._revision}

    @property
    def fetched(self) -> bool:
        return self._columns[1]

    def total(self) -> int | None:
        return len(self._rows) if hasattr(self._rows, "__len__") else None

    def items(self, inventory: Inventory | None = None) -> Iterator[Item]:
        inventory = inventory or Inventory()
        columns, fetched = self._columns
        self._note_files(inventory)
        used = [*columns, self._class_column]
        has_captions = len(columns) > 2
        others = [] if has_captions else [name for name in self._known if name not in used]
        inventory.columns(self._known, used, self.settings.split, self._wordy(others))
        if fetched:
            addresses = self._each(self._rows.select_columns([columns[0]]))
            urls = survey(row[columns[0]] for row in addresses)
            yield from one_item_a_url(self._listed, urls.repeated, inventory)
            return
        for number, (value, captions, licence) in enumerate(self._read(inventory)):
            source = f"{self.settings.split}/{number}"
            # A picture is read and checked only when its item is loaded, so a failure is that
            # item's own.
            load = partial(_content, value, self._own_folders, self.settings.max_bytes)
            yield Item(key_of(source), source, captions, licence, load)

    def _listed(self, inventory: Inventory) -> Iterator[ListedUrl]:
        for number, (value, captions, licence) in enumerate(self._read(inventory)):
            address = as_text(value)
            url = address.strip() if address else None
            yield ListedUrl(url, url or f"{self.settings.split}/{number}", captions, licence)

    def _read(self, inventory: Inventory) -> Iterator[tuple[Any, tuple[str, ...], str | None]]:
        """Picture or URL, captions and licence of every row."""
        # In this order everywhere: picture or URL, licence, captions.
        columns, _ = self._columns
        picture, licence, *fields = columns
        # Each column once: a licence or class may also be a column of captions.
        selected = dict.fromkeys(filter(None, (*columns, self._class_column)))
        rows = _undecoded(self._rows.select_columns(list(selected)), picture)
        features = rows.features or {}
        for number, row in enumerate(self._each(rows)):
            inventory.take("line")
            values = [_named(row[field], features.get(field)) for field in fields]
            own_captions = captions_in_fields(values, self.settings.encoding)
            captions = inventory.captions(own_captions, f"{self.settings.split}/{number}")
            if not captions and self._class_column:
                label = _named(row[self._class_column], features.get(self._class_column))
                captions = tuple(captions_in(label).captions)
                inventory.counts["captions_made_up"] += len(captions)
            yield row[picture], captions, as_text(row[licence]) if licence else None

    @cached_property
    def _known(self) -> list[str]:
        # A stream may not know its columns before its first row.
        return list(self._rows.column_names or next(self._each(self._rows), {}))

    @cached_property
    def _class_column(self) -> str | None:
        """The column of classes, if their names are used as captions."""
        is_used = self.settings.class_captions and LABEL in self._known
        return LABEL if is_used else None

    @cached_property
    def _columns(self) -> tuple[list[Any], bool]:
        """The columns of picture or URL, licence and captions; and whether the first holds URLs."""
        settings = self.settings
        known = self._known
        fetched = settings.image_column not in known and settings.url_column in known
        # URLs only if there is no column of pictures, which needs no network.
        picture = (
            settings.url_column
            if fetched
            else need_column(settings.image_column, known, "image_column", self.source)
        )
        captions = caption_columns(settings, known, self.source)
        return [picture, licence_column(known), *captions], fetched

    def _note_files(self, inventory: Inventory) -> None:
        """Record what became of every file, if the data set consists of files on this machine."""
        rest = f"it is no part of the split {self.settings.split}"
        if self.parquet:
            inventory.take("file", len(self.parquet))
        elif self._is_saved:
            # Several splits lie in folders of their own; a single one lies in the folder itself.
            within = (self.folder / self.settings.split, self.folder)
            split = next(place for place in within if (place / STATE).is_file())
            own = [path for path in split.iterdir() if path.suffix in (".arrow", ".json")]
            if (self.folder / SPLITS).is_file():
                own.append(self.folder / SPLITS)
            note_files(self.folder, own, rest, inventory, follow_links=False)
        elif self.folder.is_dir():
            files = self._builder.config.data_files or {}
            own = [Path(name) for name in files.get(self.settings.split, [])]
            note_files(self.folder, own, rest, inventory, follow_links=False)

    def _wordy(self, columns: list[str]) -> list[str]:
        """The columns whose first rows look like captions."""
        from datasets.features.features import require_decoding

        # Pictures and sounds are no captions, and `datasets` would decode them here.
        features = self._rows.features or {}
        texts = [name for name in columns if not require_decoding(features.get(name))]
        if not texts:
            return []
        rows = list(self._each(self._rows.select_columns(texts).take(WORDY_ROWS)))
        wordy = []
        for name in texts:
            values = [row[name] for row in rows]
            if may_be_captions(name, values):
                wordy.append(name)
        return wordy

    def _each(self, rows: Dataset | IterableDataset) -> Iterator[dict[str, Any]]:
        """The rows, read one after the other.

        Raises:
            InputError: one cannot be read.
        """
        try:
            yield from rows
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"a row of the data set cannot be read: {reason}",
                where=self.source,
                do="get its files again, or leave the damaged one out",
            ) from error

    @cached_property
    def _rows(self) -> Dataset | IterableDataset:
        try:
            return self._load()
        except (OSError, ValueError) as error:
            raise InputError(
                f"the data set's split {self.settings.split!r} cannot be loaded:"
                f" {str(error).splitlines()[0]}",
                where=self.source,
                do=(
                    "look at the name, download.split, and the network (what was loaded once is"
                    " found offline)"
                ),
            ) from error

    @cached_property
    def _own_folders(self) -> list[Path]:
        """Folders in which its rows may name pictures; for a data set of the hub, the folders of
        its downloads.
        """
        if self.parquet:
            places = [path.parent for path in self.parquet]
        elif self.folder.is_dir():
            places = [self.folder]
        else:
            from datasets import config
            from huggingface_hub.constants import HF_HUB_CACHE

            name = self.source.partition("@")[0].replace("/", "--")
            places = [Path(HF_HUB_CACHE, f"datasets--{name}"), config.DOWNLOADED_DATASETS_PATH]
        # With links and without: `datasets` gives paths in either form.
        whole = [Path(os.path.abspath(place)) for place in places]  # noqa: PTH100
        return [*whole, *(place.resolve() for place in places)]

    @property
    def _is_saved(self) -> bool:
        return any((self.folder / name).is_file() for name in SAVED)

    @cached_property
    def _builder(self) -> Any:
        """The reader of a local folder that `save_to_disk` did not write."""
        from datasets import load_dataset_builder

        folder = str(self.folder.resolve())
        # `datasets` would take it for a pattern, and read another folder that matches. `_rows`
        # turns this ValueError into an InputError.
        if glob.escape(folder) != folder:
            raise ValueError("a folder's name may not hold *, ? or [; rename it, or name its files")
        return load_dataset_builder(folder)

    @property
    def _token(self) -> str | None:
        return resolved(self.settings.token) if self.settings.token else None

    @property
    def _revision(self) -> str:
        return _hub_revision(self.source, self._token)

    def _load(self) -> Any:
        from datasets import load_dataset, load_from_disk

        if self.parquet:
            # Escaped: `datasets` takes names for patterns, and `[1]` in one for a set of letters.
            files = [glob.escape(str(path.resolve())) for path in self.parquet]
            # Streamed, so that nothing is copied to a cache.
            return load_dataset("parquet", data_files=files, split="train", streaming=True)
        if self._is_saved:
            saved = load_from_disk(str(self.folder))
            if not isinstance(saved, dict):
                return saved
            # `_rows` turns this ValueError, like those of `datasets`, into an InputError.
            if self.settings.split not in saved:
                raise ValueError(f"its splits are {', '.join(saved)}")
            return saved[self.settings.split]
        if self.folder.is_dir():
            # Streamed, so that nothing is copied to a cache.
            return self._builder.as_streaming_dataset(self.settings.split)
        return load_dataset(
            self.source.partition("@")[0],
            split=self.settings.split,
            revision=self._revision,
            token=self._token,
        )


def _undecoded(rows: Any, column: str) -> Any:
    """The rows with pictures as undecoded bytes."""
    from datasets import Image

    # Pictures are decoded in processes with limits (`hdm.pictures`); `datasets` would decode them
    # here.
    is_picture = isinstance((rows.features or {}).get(column), Image)
    return rows.cast_column(column, Image(decode=False)) if is_picture else rows


def _named(value: Any, feature: Any) -> Any:
    """A value with the names of classes in place of their numbers."""
    from datasets import ClassLabel, List

    if isinstance(feature, ClassLabel):
        # -1 stands for a missing class.
        is_class = isinstance(value, int) and 0 <= value < feature.num_classes
        return feature.int2str(value) if is_class else None
    if isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
        return [_named(entry, feature.feature) for entry in value or ()]
    return value


@lru_cache
def _hub_revision(source: str, token: str | None) -> str:
    """The commit to which a hub name resolves now."""
    from datasets import load_dataset_builder

    name, _, revision = source.partition("@")
    try:
        builder = load_dataset_builder(name, revision=revision or None, token=token)
    except (OSError, ValueError) as error:
        raise InputError(
            "no folder of that name here, and no such data set can be had from the hub:"
            f" {str(error).splitlines()[0]}",
            where=source,
            do="look at download.source; a hub name is org/name or org/name@revision",
        ) from error
    return str(builder.hash)


def _content(value: Any, folders: Sequence[Path], max_bytes: int) -> bytes | Url:
    """The picture in any form that data sets use: bytes, their place, or a mapping of both."""
    data = value
    place = None
    if isinstance(value, dict):
        data = value.get("bytes")
        place = value.get("path")
    if isinstance(data, str):
        place = data
        data = None
    if data is None and isinstance(place, str) and place.strip():
        return read_place(place, folders, max_bytes)
    if not isinstance(data, bytes):
        raise Unreadable("no_picture", "the row has no picture")
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data
