"""A folder of pictures, with captions beside them (`.txt`, `.json`) or in metadata files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from hdm.acquisition import fingerprints
from hdm.acquisition.items import (
    LICENCE_COLUMNS,
    PICTURE_SUFFIXES,
    Item,
    Keys,
    Unreadable,
    as_text,
    caption_column,
    need_column,
    read_file,
    texts,
)
from hdm.acquisition.tabular import column_names, json_object, read_rows
from hdm.config import DownloadSettings
from hdm.errors import InputError

METADATA, FILE_NAME = "metadata.jsonl", "file_name"
SIDECARS = (".json", ".txt")
Words = tuple[str | None, str | None]  # caption, licence


class Folder:
    """Every picture below a folder in order of its path; hidden files and folders are left out.

    A metadata file names pictures in its column `file_name`, relative to its own folder. A picture that it names twice comes twice,
    one that is not there gets a status, and one that it does not name comes with what lies beside it.
    """

    fetched = False

    def __init__(self, root: Path, settings: DownloadSettings) -> None:
        self.root, self.settings = root, settings

    def fingerprint(self) -> dict[str, Any]:
        beside = {
            str(PurePosixPath(picture).with_suffix(suffix))
            for picture in self._pictures
            for suffix in SIDECARS
        }
        files = sorted(self._pictures | (beside & self._files.keys()))
        metadata = {self._relative(path): fingerprints.whole(path) for path in self._metadata_files}
        return {
            **fingerprints.tree((name, self._files[name]) for name in files),
            "metadata": metadata,
        }

    def total(self) -> int:
        listed = self._listed
        return sum(max(len(listed.get(name, ())), 1) for name in self._pictures | listed.keys())

    def items(self) -> Iterator[Item]:
        keys, listed = Keys(), self._listed
        for name in sorted(self._pictures | listed.keys()):
            for caption, licence in listed.get(name) or [self._beside(name)]:
                load = (
                    partial(read_file, self.root / name, self.settings.max_bytes)
                    if _inside(name)
                    else _refused
                )
                yield Item(keys.give(name), _shown(name), caption, licence, load)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Path relative to the folder → path, of every file that is not hidden."""
        found: dict[str, Path] = {}
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if not name.startswith("."):
                    path = Path(folder, name)
                    found[self._relative(path)] = path
        return found

    @cached_property
    def _pictures(self) -> set[str]:
        return {
            name for name in self._files if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES
        }

    @cached_property
    def _metadata_files(self) -> list[Path]:
        wanted = self.settings.metadata
        if wanted is None:
            return [path for name, path in sorted(self._files.items()) if path.name == METADATA]
        path = self.root / wanted
        if not path.is_file():
            near = difflib.get_close_matches(wanted, self._files, n=1, cutoff=0.5)
            guess = f"; did you mean {near[0]}?" if near else ""
            raise InputError(
                f"there is no metadata file {wanted!r}{guess}",
                where=self.root,
                do="--set download.metadata=FILE",
            )
        return [path]

    @cached_property
    def _listed(self) -> dict[str, list[Words]]:
        """Path relative to the folder → what the metadata say, once for each line."""
        found: dict[str, list[Words]] = {}
        for path in self._metadata_files:
            known = column_names(path)
            columns = [
                need_column(FILE_NAME, known, "metadata", path),
                caption_column(self.settings, known, path),
                next((name for name in LICENCE_COLUMNS if name in known), None),
            ]
            for name, caption, licence in map(texts, read_rows(path, columns)):
                if name is not None:
                    beside = os.path.dirname(self._relative(path))  # noqa: PTH120
                    place = os.path.normpath(os.path.join(beside, name))  # noqa: PTH118
                    found.setdefault(place, []).append((caption, licence))
        return found

    def _beside(self, name: str) -> Words:
        """What the files beside a picture say of it."""
        stem = str(PurePosixPath(name).with_suffix(""))
        if f"{stem}.json" in self._files:
            record = json_object(self._files[f"{stem}.json"].read_bytes())
            licence = next(
                (text for column in LICENCE_COLUMNS if (text := as_text(record.get(column)))), None
            )
            caption = as_text(record.get(self.settings.caption_column))
            if caption:
                return caption, licence
        if f"{stem}.txt" in self._files:
            text = as_text(self._files[f"{stem}.txt"].read_bytes())
            return (text.strip() if text else None), None
        return None, None

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _inside(name: str) -> bool:
    return not name.startswith(("../", "/")) and name != ".."


def _refused() -> bytes:
    raise Unreadable("refused_path", "the metadata name a file outside the folder")


def _shown(name: str) -> str:
    """A file's name as text that any table can hold."""
    return os.fsencode(name).decode("utf-8", "replace")
