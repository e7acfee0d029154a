"""WebDataset tars that somebody made: pictures with their captions under one name."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hdm.acquisition import fingerprints
from hdm.acquisition.items import (
    LICENCE_COLUMNS,
    PICTURE_SUFFIXES,
    Item,
    Keys,
    Unreadable,
    as_text,
    too_large,
)
from hdm.acquisition.tabular import json_object
from hdm.config import DownloadSettings

CAPTIONS = ("txt", "caption", "text")
MAX_WORDS_BYTES = 1 << 22
DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error)


@dataclass
class _Sample:
    """The members of one sample, as they come."""

    base: str
    picture: str | None = None
    load: Callable[[], bytes] | None = None
    words: dict[str, bytes] = field(default_factory=dict)


class Tars:
    """Tars in order of their names. Nothing is unpacked and no name leads anywhere; what is damaged or no file gets a status."""

    fetched = False

    def __init__(self, paths: list[Path], settings: DownloadSettings) -> None:
        self.paths, self.settings = paths, settings
        self.root = Path(os.path.commonpath([path.parent for path in paths]))

    def fingerprint(self) -> dict[str, Any]:
        return fingerprints.tree((self._name(path), path) for path in self.paths)

    def total(self) -> None:
        return None

    def items(self) -> Iterator[Item]:
        for path in self.paths:
            keys, name = Keys(), self._name(path)
            for sample in self._samples(path):
                source = "/".join(part for part in (name, sample.picture or sample.base) if part)
                caption, licence = self._words(sample)
                yield Item(keys.give(source), source, caption, licence, sample.load or _no_picture)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _samples(self, path: Path) -> Iterator[_Sample]:
        """Members with one name up to its first dot, as WebDataset groups them; a second picture begins a new sample."""
        try:
            tar = tarfile.open(path)  # noqa: SIM115  (closed below; what fails here is the tar, not its reading)
        except DAMAGE:
            yield _Sample("", load=_damaged)
            return
        with tar:
            sample: _Sample | None = None
            for member in _members(tar):
                base, kind = _split(member.name) if member else ("", "")
                is_picture = f".{kind}" in PICTURE_SUFFIXES
                if sample is None or base != sample.base or (is_picture and sample.picture):
                    if sample is not None:
                        yield sample
                    sample = _Sample(base)
                if member is None:
                    sample.load = _damaged
                elif is_picture:
                    sample.picture, sample.load = as_text(member.name), self._loader(tar, member)
                elif (
                    member.isreg()
                    and member.size <= MAX_WORDS_BYTES
                    and kind in (*CAPTIONS, "json")
                ):
                    with suppress(Unreadable):  # the tar ends here, and that is told next
                        sample.words[kind] = _content(tar, member)
            if sample is not None:
                yield sample

    def _loader(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
        if not member.isreg():
            return _not_a_file
        if member.size > self.settings.max_bytes:
            return partial(_raise, too_large(self.settings.max_bytes))
        if isinstance(tar.fileobj, io.BufferedReader):
            return partial(_content, tar, member)
        return _read_now(tar, member)  # a compressed tar cannot go back

    def _words(self, sample: _Sample) -> tuple[str | None, str | None]:
        """Caption and licence."""
        record = json_object(sample.words.get("json", b""))
        licence = next(
            (text for column in LICENCE_COLUMNS if (text := as_text(record.get(column)))), None
        )
        texts = [
            record.get(self.settings.caption_column),
            *(sample.words.get(kind) for kind in CAPTIONS),
        ]
        caption = next((text for text in map(as_text, texts) if text), None)
        return caption.strip() if caption else None, licence


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo | None]:
    """The tar's members but for folders and what has no suffix; None where it is damaged, and ends."""
    try:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else every header of a large tar stays in memory
            if not member.isdir() and _split(member.name)[1]:
                yield member
        # Python takes a torn or broken header for the end; the end is a block of zeros.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            yield None
    except DAMAGE:
        yield None


def _split(name: str) -> tuple[str, str]:
    """The name up to the first dot of its last part, and what follows the last dot: `a/b.seg.PNG` → `a/b`, `png`."""
    file_name = name.rpartition("/")[2]
    suffixes = file_name.partition(".")[2]
    return name.removesuffix(f".{suffixes}"), suffixes.rsplit(".", 1)[-1].lower()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = tar.extractfile(member)
        data = file.read() if file else b""
    except DAMAGE:
        data = b""
    if len(data) != member.size:
        raise Unreadable("cut_off", "the tar ends within the picture")
    return data


def _read_now(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    try:
        return partial(bytes, _content(tar, member))
    except Unreadable as refusal:
        return partial(_raise, refusal)


def _raise(refusal: Unreadable) -> bytes:
    raise refusal


def _damaged() -> bytes:
    raise Unreadable("damaged_tar", "the tar is damaged or ends early; what follows in it is lost")


def _no_picture() -> bytes:
    raise Unreadable("no_picture", "the sample has no picture")


def _not_a_file() -> bytes:
    raise Unreadable("not_a_file", "the member is a link or a device")
