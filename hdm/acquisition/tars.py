"""Read other people's WebDataset tars: pictures and captions that share a name."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hdm.acquisition import source_fingerprints
from hdm.acquisition.folder import captions_in_json
from hdm.acquisition.inventory import Fate, Inventory
from hdm.acquisition.items import (
    DAMAGE,
    PICTURE_SUFFIXES,
    Item,
    Unreadable,
    too_large,
)
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.texts import Captions, as_text, captions_in_file, settle
from hdm.acquisition.tree import note_files
from hdm.files import CHUNK_BYTES
from hdm.keys import Keys
from hdm.pictures.formats import HEAD_BYTES, sniff

TEXTS = ("txt", "caption", "text")
CLASS = "cls"
# Texts are held in memory until their sample is complete.
MAX_WORDS_BYTES = 1 << 22
Load = Callable[[], bytes]


@dataclass
class _Sample:
    """The members of one sample in their order."""

    base: str
    pictures: list[tuple[str, Load]] = field(default_factory=list)
    words: list[tuple[str, str, bytes | Unreadable]] = field(default_factory=list)
    """Name, kind and content of each text."""


class Tars:
    """Tars in order of their names.

    Nothing is unpacked, and members' names are never used as paths. Damaged members, links and
    devices get a status.
    """

    fetched = False

    def __init__(
        self, paths: list[Path], settings: DownloadSettings, folder: Path | None = None
    ) -> None:
        """Read these tars; `folder` is the source whose tars they are, if it is a folder."""
        self.paths = paths
        self.settings = settings
        self.folder = folder
        self.root = Path(os.path.commonpath([path.parent for path in paths]))

    def fingerprint(self) -> dict[str, Any]:
        return source_fingerprints.tree((self._name(path), path) for path in self.paths)

    def total(self) -> None:
        return None

    def items(self, inventory: Inventory | None = None) -> Iterator[Item]:
        inventory = inventory or Inventory()
        if self.folder is None:
            inventory.take("file", len(self.paths))
        else:
            rest = "the source is read as tars"
            note_files(self.folder, self.paths, rest, inventory, self.settings.follow_links)
        for path in self.paths:
            # A tar may repeat a member's name; keys then count the repetitions.
            keys = Keys()
            name = self._name(path)
            for sample in self._samples(path, name, inventory):
                base = "/".join(filter(None, (name, sample.base)))
                captions, licence = self._words(sample, name, inventory)
                if captions and not sample.pictures:
                    reason = "the sample has no picture"
                    inventory.leave("caption", Fate.LOST, base, reason)
                for picture, load in sample.pictures or [(sample.base, _no_picture)]:
                    source = "/".join(filter(None, (name, picture)))
                    yield Item(keys.give(source), source, captions, licence, load)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _samples(self, path: Path, name: str, inventory: Inventory) -> Iterator[_Sample]:
        """Members with the same name up to its first dot, as WebDataset groups them.

        Several pictures of one name share its captions.
        """
        try:
            # Not in the `with` below, which would catch errors of reading too.
            tar = tarfile.open(path)  # noqa: SIM115
        except DAMAGE:
            yield _Sample("", [("", _damaged)])
            return
        with tar:
            sample: _Sample | None = None
            for member in _members(tar):
                if member is None:
                    if sample is not None:
                        yield sample
                    sample = _Sample("", [("", _damaged)])
                    continue
                base, kind = _split(member.name)
                added = self._member(tar, member, kind)
                if added is None:
                    place = f"{name}/{as_text(member.name)}"
                    if member.isreg():
                        reason = f"{kind or 'it'} is no picture"
                        inventory.leave("member", Fate.NOT_LOOKED_AT, place, reason)
                    else:
                        inventory.leave("member", Fate.REFUSED, place, "it is a link or a device")
                    continue
                inventory.take("member")
                # Members of a sample are consecutive in WebDataset's tars, so a new name ends the
                # sample.
                if sample is None or base != sample.base:
                    if sample is not None:
                        yield sample
                    sample = _Sample(base)
                if isinstance(added, tuple):
                    sample.words.append((as_text(member.name) or "", kind, added[0]))
                else:
                    sample.pictures.append((as_text(member.name) or "", added))
            if sample is not None:
                yield sample

    def _member(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str
    ) -> Load | tuple[bytes | Unreadable] | None:
        """A function that loads a picture, or the content of a text in a tuple; None for others."""
        is_class = kind == CLASS and self.settings.class_captions
        if (kind in (*TEXTS, "json") or is_class) and member.isreg():
            return (_words(tar, member),)
        if f".{kind}" in PICTURE_SUFFIXES:
            return self._loader(tar, member)
        if not member.isreg():
            return None
        load = self._loader(tar, member)
        # A compressed tar cannot go back without decompressing everything again, and its member has
        # been loaded already.
        seekable = isinstance(tar.fileobj, io.BufferedReader)
        start = _start(tar, member) if seekable else _or_nothing(load)
        return load if sniff(start) else None

    def _loader(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Load:
        if not member.isreg():
            return _not_a_file
        if member.size > self.settings.max_bytes:
            return partial(_raise, too_large(self.settings.max_bytes))
        if isinstance(tar.fileobj, io.BufferedReader):
            # Read only when it is wanted: a finished shard's pictures are skipped.
            return partial(_content, tar, member)
        return _read_now(tar, member)  # a compressed tar cannot go back

    def _words(
        self, sample: _Sample, tar: str, inventory: Inventory
    ) -> tuple[tuple[str, ...], str | None]:
        """Captions and licence."""
        licence = None
        in_members: list[tuple[str, Captions]] = []
        # In a fixed order of kinds, whatever the order of the members.
        kinds = ("json", *TEXTS)
        words = [word for word in sample.words if word[1] in kinds]
        for name, kind, data in sorted(words, key=lambda word: kinds.index(word[1])):
            if isinstance(data, Unreadable):
                in_member = Captions(losses=[data.message])
            elif kind == "json":
                in_member, own_licence = captions_in_json(data, self.settings)
                licence = licence or own_licence
            else:
                lines = self.settings.text_lines
                in_member = captions_in_file(data, lines, self.settings.encoding)
            in_members.append((f"{tar}/{name}", in_member))
        settle(in_member for _, in_member in in_members)
        captions: tuple[str, ...] = ()
        for place, in_member in in_members:
            captions += inventory.captions(in_member, place)
        label = next((data for _, kind, data in sample.words if kind == CLASS), None)
        if not captions and isinstance(label, bytes):
            captions = _class_name(label)
            inventory.counts["captions_made_up"] += len(captions)
        return tuple(dict.fromkeys(captions)), licence


def _class_name(label: bytes) -> tuple[str, ...]:
    """The name of a class as a caption; none if the class is only a number."""
    text = as_text(label)
    return () if text is None or text.strip().isdecimal() else (text.strip(),)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo | None]:
    """The tar's members except folders; then None if the tar is damaged."""
    try:
        for member in tar:
            # Otherwise every header of a large tar would stay in memory.
            tar.members = []  # type: ignore[attr-defined]
            if not member.isdir():
                yield member
        # Python takes a torn or broken header, and any block of zeros, for the end.
        if not _ends_whole(tar):
            yield None
    except DAMAGE:
        yield None


def _ends_whole(tar: tarfile.TarFile) -> bool:
    """Whether zeros alone follow, at least a block of them. Of a compressed tar, this reads its
    checksum too.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    length = 0
    while part := tar.fileobj.read(CHUNK_BYTES):
        if part.strip(b"\0"):
            return False
        length += len(part)
    return length >= tarfile.BLOCKSIZE


def _split(name: str) -> tuple[str, str]:
    """The name up to the first dot of its last part, and the part after its last dot: `a/b.seg.PNG`
    → `a/b`, `png`.
    """
    file_name = name.rpartition("/")[2]
    suffixes = file_name.partition(".")[2]
    return name.removesuffix(f".{suffixes}"), suffixes.rsplit(".", 1)[-1].lower()


def _words(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Unreadable:
    if member.size > MAX_WORDS_BYTES:
        return too_large(MAX_WORDS_BYTES)
    try:
        return _content(tar, member)
    except Unreadable as refusal:
        return refusal


def _start(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """A member's first bytes."""
    try:
        file = tar.extractfile(member)
        return file.read(HEAD_BYTES) if file else b""
    except DAMAGE:
        return b""


def _or_nothing(load: Load) -> bytes:
    try:
        return load()
    except Unreadable:
        return b""


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = tar.extractfile(member)
        data = file.read() if file else b""
    except DAMAGE:
        data = b""
    if len(data) != member.size:
        raise Unreadable("cut_off", "the tar ends within the picture")
    return data


def _read_now(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Load:
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
