"""Read a folder of pictures with captions in files beside them or in metadata files.

docs/own-pictures.md lists the conventions.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from hdm.acquisition import source_fingerprints
from hdm.acquisition.inventory import EXAMPLES, Fate, Inventory
from hdm.acquisition.items import (
    LICENCE_COLUMNS,
    PICTURE_SUFFIXES,
    Item,
    Unreadable,
    caption_columns,
    licence_column,
    read_file,
)
from hdm.acquisition.names import Names, folded, literal_place
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.tabular import (
    FILE_NAME,
    column_names,
    in_other_encodings,
    json_value,
    read_rows,
    wordy_columns,
)
from hdm.acquisition.texts import (
    Captions,
    as_text,
    caption_fields,
    captions_in,
    captions_in_fields,
    captions_in_file,
    is_wordy,
    may_be_captions,
    settle,
)
from hdm.acquisition.tree import Tree, shown, walk
from hdm.errors import InputError
from hdm.keys import key_of
from hdm.pictures.formats import HEAD_BYTES, foreign_format, sniff

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
FILE_COLUMNS = (FILE_NAME, "filename", "file", "image", "image_path", "path")
"""Columns that name the picture; the first one of these that a table has counts."""
SIDECARS = (".json", ".txt", ".caption", ".text")
TABLES = (".jsonl", ".csv", ".tsv", ".parquet", ".json")
ABOUT = (
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "authors",
    "requirements",
)
"""Texts with these names describe the whole folder."""
MASKS = ("-masklabel", "-condlabel")
"""OneTrainer's names for masks of a picture, which are not pictures to train on."""
ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zip", ".7z", ".rar")
# The largest text beside a picture, and the largest table that is looked at unasked.
MAX_WORDS_BYTES = 1 << 24
MAX_TABLE_BYTES = 1 << 28
LOOKED_AT = 100
"""Rows of a table that no setting names, read to see whether it lists files of this folder."""
_REPEATS = re.compile(r"\d+_(?=.)")  # kohya's number of repeats in front of a folder's name


@dataclass
class _Metadata:
    """Captions and licence of one picture in metadata files."""

    captions: Captions = field(default_factory=Captions)
    licence: str | None = None


class Folder:
    """Every picture below a folder in order of its path, without hidden files and folders.

    A picture has the captions of all metadata lines that name it and of all files beside it. A line
    that names a missing file, or a file outside the folder, becomes an item with a status.
    """

    fetched = False

    def __init__(self, root: Path, settings: DownloadSettings) -> None:
        self.root = root
        self.settings = settings

    def fingerprint(self) -> dict[str, Any]:
        texts = {name for name in self._files if _suffix(name) in SIDECARS}
        # Read whole: `tree` reads only the edges of files, and a change in the middle of a table
        # changes a caption.
        metadata = {
            self._relative(path): source_fingerprints.whole(path) for path in self._metadata_files
        }
        files = sorted(self._pictures | texts)
        return {
            **source_fingerprints.tree((name, self._files[name]) for name in files),
            "metadata": metadata,
        }

    def total(self) -> int:
        return len(self._pictures | self._metadata[0].keys())

    def holds_pictures(self) -> bool:
        """Whether there is any picture, named by metadata or not."""
        return bool(self._pictures)

    def items(self, inventory: Inventory | None = None) -> Iterator[Item]:
        inventory = inventory or Inventory()
        listed, lines = self._metadata
        inventory.add_all(lines)
        # Before the items, so that a download with lost captions stops after its first shard.
        self._note_files(inventory)
        for name in sorted(self._pictures | listed.keys()):
            metadata = listed.get(name) or _Metadata()
            captions = inventory.captions(metadata.captions, shown(name))
            # Before `metadata.licence` is read below: a text beside the picture may give it.
            captions += self._beside(name, metadata, inventory)
            if not captions and self.settings.class_captions:
                captions = self._class(name, inventory)
            load = partial(read_file, self.root / name, self.settings.max_bytes)
            yield Item(
                key_of(name),
                shown(name),
                tuple(dict.fromkeys(captions)),
                metadata.licence,
                load if _inside(name) else _refused,
            )

    @cached_property
    def _tree(self) -> Tree:
        return walk(self.root, self.settings.follow_links)

    @property
    def _files(self) -> dict[str, Path]:
        return self._tree.files

    @cached_property
    def _pictures(self) -> set[str]:
        """Names of the files whose suffix or first bytes are those of a picture."""
        pictures = set()
        for name, path in self._files.items():
            if _is_mask(name):
                continue
            suffix = _suffix(name)
            is_text = suffix in (*SIDECARS, *TABLES)
            # Only other files are opened, since there may be many.
            if suffix in PICTURE_SUFFIXES or (not is_text and sniff(_start(path)) is not None):
                pictures.add(name)
        return pictures

    @cached_property
    def _names(self) -> Names:
        return Names(self.root, self._files.keys(), self._pictures)

    @cached_property
    def _metadata_files(self) -> list[Path]:
        chosen = self.settings.metadata
        if chosen is None:
            files = sorted(self._files.items())
            return [path for name, path in files if path.name.lower() in METADATA]
        path = self.root / chosen
        if not path.is_file():
            near = difflib.get_close_matches(chosen, self._files, n=1, cutoff=0.5)
            guess = f"; did you mean {near[0]}?" if near else ""
            raise InputError(
                f"there is no metadata file {chosen!r}{guess}",
                where=self.root,
                do="--set download.metadata=FILE",
            )
        return [path]

    @cached_property
    def _metadata(self) -> tuple[dict[str, _Metadata], Inventory]:
        """The metadata of each file by its name, and what became of their lines."""
        # Kept with an inventory of its own: the tables are read once, though `total` and `items`
        # both need them.
        metadata: dict[str, _Metadata] = {}
        inventory = Inventory()
        encoding = self.settings.encoding
        for path in self._metadata_files:
            known = column_names(path, encoding=encoding)
            columns = [
                _need_file_column(known, path),
                licence_column(known),
                *caption_columns(self.settings, known, path),
            ]
            name = self._relative(path)
            has_captions = len(columns) > 2
            others = [] if has_captions else [other for other in known if other not in columns]
            inventory.columns(known, columns, name, wordy_columns(path, others, encoding))
            for number, row in read_rows(path, columns, encoding):
                self._take_line(row, name, number, metadata, inventory)
        return metadata, inventory

    def _take_line(
        self,
        row: tuple[Any, ...] | None,
        table: str,
        number: int,
        metadata: dict[str, _Metadata],
        inventory: Inventory,
    ) -> None:
        """Add one line of metadata to the picture that it names."""
        line = f"{shown(table)}:{number}"
        beside = os.path.dirname(table)  # noqa: PTH120
        if row is None:
            inventory.leave("line", Fate.LOST, line, "it is no JSON object")
            return
        name = as_text(row[0], self.settings.encoding)
        if name is None:
            inventory.leave("line", Fate.LOST, line, "it names no file")
            return
        place = self._names.find(name, beside, line)
        if place is None:
            place = literal_place(name.replace("\\", "/"), beside)
            inventory.leave("line", Fate.LOST, line, self._not_there(name, place))
        else:
            inventory.take("line")
        entry = metadata.setdefault(place, _Metadata())
        entry.captions.add(captions_in_fields(row[2:], self.settings.encoding))
        entry.licence = entry.licence or as_text(row[1])

    def _not_there(self, name: str, place: str) -> str:
        fault = "is not there" if _inside(place) else "lies outside the folder"
        reason = f"it names {name}, which {fault}"
        near = self._names.near(name)
        return f"{reason}; did you mean {near}?" if near else reason

    @cached_property
    def _sidecars(self) -> dict[str, list[str]]:
        """Picture → the texts beside it: `a.txt` and `a.png.txt` belong to `a.png`."""
        exact_bases = set()
        pictures: dict[str, list[str]] = {}
        for picture in sorted(self._pictures):
            for base in (picture, _stem(picture)):
                exact_bases.add(base)
                pictures.setdefault(folded(base), []).append(picture)
        metadata = {self._relative(path) for path in self._metadata_files}
        beside: dict[str, list[str]] = {}
        for name in sorted(self._files.keys() - metadata):
            if _suffix(name) not in SIDECARS:
                continue
            base = _stem(name)
            for picture in pictures.get(folded(base), ()):
                # If some picture has exactly this name, the text does not belong to pictures whose
                # names only resemble it.
                if base in (picture, _stem(picture)) or base not in exact_bases:
                    beside.setdefault(picture, []).append(name)
        return beside

    def _beside(self, picture: str, metadata: _Metadata, inventory: Inventory) -> tuple[str, ...]:
        """The captions in the files beside a picture."""
        in_files: dict[str, Captions] = {}
        for name in self._sidecars.get(picture, []):
            in_files[name], licence = self._read_sidecar(name)
            metadata.licence = metadata.licence or licence
        # Only all places together tell whether the picture has a caption.
        settle([metadata.captions, *in_files.values()])
        captions: tuple[str, ...] = ()
        for name, in_file in in_files.items():
            captions += inventory.captions(in_file, shown(name))
        return captions

    def _read_sidecar(self, name: str) -> tuple[Captions, str | None]:
        try:
            data = read_file(self._files[name], MAX_WORDS_BYTES)
        except Unreadable as refusal:
            return Captions(losses=[refusal.message]), None
        if _suffix(name) != ".json":
            return captions_in_file(data, self.settings.text_lines, self.settings.encoding), None
        return captions_in_json(data, self.settings)

    def _class(self, name: str, inventory: Inventory) -> tuple[str, ...]:
        """The name of a picture's folder, as its caption."""
        folder = _folder(name).rpartition("/")[2]
        inventory.counts["captions_made_up"] += bool(folder)
        return (_REPEATS.sub("", shown(folder), count=1),) if folder else ()

    def _note_files(self, inventory: Inventory) -> None:
        """Record what became of every file."""
        self._note_unread(inventory)
        used = self._pictures.union(map(self._relative, self._metadata_files))
        used = used.union(*self._sidecars.values())
        inventory.take("file", len(used))
        stems: dict[str, list[str]] = {}
        for picture in sorted(self._pictures):
            stems.setdefault(_folder(picture), []).append(_stem(picture))
        # A text may have been moved away from the picture of the same name.
        elsewhere = {}
        for in_folder in stems.values():
            for stem in in_folder:
                elsewhere[_last(stem)] = stem
        for name in sorted(self._files.keys() - used):
            if _suffix(name) in SIDECARS and self._holds_caption(name, stems.keys()):
                # Searching for a similar name is slow; only losses that are shown get one.
                beside = stems.get(_folder(name), []) if inventory.lost < EXAMPLES else []
                near = difflib.get_close_matches(_stem(name), beside, n=1, cutoff=0.6)
                guess = f"; did you mean {shown(near[0])}?" if near else ""
                reason = f"it lies beside pictures and belongs to none of them{guess}"
                inventory.leave("file", Fate.LOST, shown(name), reason)
            elif (namesake := elsewhere.get(_last(_stem(name)))) and self._is_text(name):
                reason = f"it lies in another folder than {shown(namesake)}; move it beside that"
                inventory.leave("file", Fate.LOST, shown(name), reason)
            else:
                self._note_other(name, inventory)

    def _note_unread(self, inventory: Inventory) -> None:
        """Record what could not be read. A text named like a picture counts as a lost caption."""
        stems = {shown(_stem(picture)) for picture in self._pictures}
        for entry in self._tree.others:
            is_refused = entry.what == "file" and entry.fate is Fate.REFUSED
            is_caption = _suffix(entry.place) in SIDECARS and _stem(entry.place) in stems
            lost = is_refused and is_caption
            inventory.add(replace(entry, fate=Fate.LOST) if lost else entry)

    def _note_other(self, name: str, inventory: Inventory) -> None:
        """Record a file that is neither a picture nor a caption."""
        path = self._files[name]
        if _is_mask(name):
            inventory.leave("file", Fate.NOT_LOOKED_AT, shown(name), "it is a mask of OneTrainer")
        # Lost, not merely unused, if it holds captions: the download then stops.
        elif _suffix(name) in TABLES and (reason := self._captions_in(path)):
            inventory.leave("file", Fate.LOST, shown(name), reason)
        elif _suffix(name) in TABLES:
            reason = "set download.metadata to it, if it holds captions"
            inventory.leave("file", Fate.NOT_LOOKED_AT, shown(name), reason)
        elif foreign := foreign_format(_start(path)):
            reason = f"{foreign}: not read; convert it to PNG"
            inventory.leave("file", Fate.REFUSED, shown(name), reason)
        elif target := _link_as_text(path):
            reason = (
                f"it is a link to the folder {target} that was copied as text; make it a link again"
            )
            inventory.leave("folder", Fate.LOST, shown(name), reason)
        else:
            inventory.leave("file", Fate.NOT_LOOKED_AT, shown(name), _no_picture(name))

    def _captions_in(self, path: Path) -> str | None:
        """Why captions in a table that no setting names are lost; None if it does not seem to hold
        captions of files in this folder.
        """
        # A user who names a table has decided about the others.
        if self.settings.metadata is not None or path.stat().st_size > MAX_TABLE_BYTES:
            return None
        encoding = self.settings.encoding
        known: list[str] = []
        rows = []
        try:
            known = column_names(path, encoding=encoding)
            for _, row in islice(read_rows(path, known, encoding), LOOKED_AT):
                if row:
                    rows.append(row)
        except InputError as error:
            # JSON that is whole only in another encoding was written by a person.
            if _suffix(path.name) == ".json":
                return in_other_encodings(path.read_bytes())
            if _file_column(known) and caption_fields(known, self.settings.caption_column):
                return f"it has columns of files and captions, but {error.what}"
            # What was read before the fault may show what the table is; else it may be anything.
        columns = dict(zip(known, zip(*rows, strict=True), strict=True)) if rows else {}
        beside = os.path.dirname(self._relative(path))  # noqa: PTH120
        naming = [name for name, values in columns.items() if self._names_files(values, beside)]
        if not naming:
            return None
        if _file_column(naming) and caption_fields(known, self.settings.caption_column):
            return "it lists captions of files; set download.metadata to it, or move it away"
        others = [name for name in columns if name not in naming]
        wordy = [name for name in others if may_be_captions(name, columns[name])]
        if not wordy:
            return None
        advice = f"set download.metadata to it and download.caption_column={wordy[0]}"
        if _file_column(naming) is None:
            advice = f"call its column {naming[0]!r} {FILE_NAME}, {advice}"
        return f"it may list captions of files; {advice}, or move it away"

    def _names_files(self, values: Iterable[Any], beside: str) -> bool:
        """Whether a column of a table in the folder `beside` names a file of this folder."""
        for value in values:
            name = as_text(value)
            if name and self._is_here(name, beside):
                return True
        return False

    def _is_here(self, name: str, beside: str) -> bool:
        try:
            return self._names.find(name, beside, "") is not None
        except InputError:  # several files fit the name
            return True

    def _holds_caption(self, name: str, folders: Collection[str]) -> bool:
        """Whether a text that belongs to no picture looks like a caption."""
        if _suffix(name) != ".json":
            return _folder(name) in folders and not _is_about(_stem(name).rpartition("/")[2])
        try:
            data = read_file(self._files[name], MAX_WORDS_BYTES)
        except Unreadable:
            return False
        # A list may be of anything, but an object with a caption describes one picture.
        if not isinstance(json_value(data, self.settings.encoding), dict):
            return False
        captions, _ = captions_in_json(data, self.settings)
        return bool(captions.captions)

    def _is_text(self, name: str) -> bool:
        """Whether a file is a text with letters, unlike a list of bounding boxes."""
        if _suffix(name) not in SIDECARS or _suffix(name) == ".json":
            return False
        text, _ = self._read_sidecar(name)
        return any(map(str.isalpha, "".join(text.captions)))

    def _relative(self, path: Path) -> str:
        """A path relative to the folder. A metadata file may be outside it."""
        return Path(os.path.relpath(path, self.root)).as_posix()


def captions_in_json(data: bytes, settings: DownloadSettings) -> tuple[Captions, str | None]:
    """The captions in a JSON file about one picture, and its licence.

    The file contains an object with a field for captions, a text, or a list of texts.
    """
    value = json_value(data, settings.encoding)
    if value is None:
        return Captions(losses=[in_other_encodings(data) or "it is not JSON"]), None
    if not isinstance(value, dict):
        return captions_in(value, settings.encoding), None
    fields = caption_fields(value, settings.caption_column)
    captions = captions_in_fields((value[name] for name in fields), settings.encoding)
    if not fields and is_wordy(value):
        wordy = [name for name in value if is_wordy(value[name])]
        captions.doubts.append(
            f"its captions may be in {', '.join(wordy)}: --set download.caption_column=NAME takes a"
            " field at the top"
        )
    licences = [as_text(value.get(name)) for name in LICENCE_COLUMNS]
    return captions, next(filter(None, licences), None)


def _file_column(known: Iterable[str]) -> str | None:
    """The column that names pictures, ignoring case; None if there is none."""
    by_lower_name: dict[str, str] = {}
    for name in known:
        by_lower_name.setdefault(name.lower(), name)
    return next((by_lower_name[name] for name in FILE_COLUMNS if name in by_lower_name), None)


def _need_file_column(known: list[str], path: Path) -> str:
    column = _file_column(known)
    if column is None:
        raise InputError(
            f"no column names pictures; its columns are {', '.join(known) or '(none)'}",
            where=path,
            do=(
                f"call the column {FILE_NAME}, name another table with --set"
                " download.metadata=FILE, or move this one away"
            ),
        )
    return column


def _is_about(stem: str) -> bool:
    return stem.lower().startswith(ABOUT)


def _is_mask(name: str) -> bool:
    return _stem(name).endswith(MASKS)


def _suffix(name: str) -> str:
    # There may be many names, and pathlib takes ten times as long.
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _stem(name: str) -> str:
    """A path without its last suffix."""
    return os.path.splitext(name)[0]  # noqa: PTH122


def _last(stem: str) -> str:
    """The last part of a path, in one Unicode form and case."""
    return folded(stem.rpartition("/")[2])


def _folder(name: str) -> str:
    return os.path.dirname(name)  # noqa: PTH120


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _no_picture(name: str) -> str:
    """Why a file of no known kind is not read."""
    if name.lower().endswith(ARCHIVES):
        return (
            "archives beside pictures are not opened; unpack it, or run with it as download.source"
        )
    return "it is no picture, and captions are looked for in " + ", ".join(SIDECARS)


def _link_as_text(path: Path) -> str | None:
    """The target of a link that was copied as a text file, as git does on Windows; None if the file
    is something else.
    """
    data = _start(path)
    if path.suffix or not data or len(data) == HEAD_BYTES or b"\0" in data or b"\n" in data:
        return None
    target = os.fsdecode(data)
    return shown(target) if "/" in target and (path.parent / target).is_dir() else None


def _inside(name: str) -> bool:
    return not name.startswith(("../", "/")) and name != ".."


def _refused() -> bytes:
    raise Unreadable("refused_path", "the metadata name a file outside the folder")
