"""List the files below a folder, following each link once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hdm.acquisition.inventory import Entry, Fate, Inventory, What


@dataclass
class Tree:
    """The content of a folder.

    Args:
        files: name → path of readable regular files that are not hidden.
        others: everything else, with the reason why it is not read.
    """

    files: dict[str, Path] = field(default_factory=dict)
    others: list[Entry] = field(default_factory=list)


def walk(root: Path, follow_links: bool) -> Tree:
    """List everything below a folder, in order of name.

    A link to a folder is read under the link's own name, after everything that is not a link, and
    only if its target was not read already, so loops end. A link to a folder that contains this one
    is refused.

    Args:
        root: the folder.
        follow_links: follow links; otherwise they are refused.
    """
    return _Walk(root, follow_links).tree


def note_files(
    root: Path, taken: Iterable[Path], rest: str, inventory: Inventory, follow_links: bool
) -> None:
    """Record everything below a folder of which some files are the source.

    Args:
        root: the folder.
        taken: the source's files, which may be links.
        rest: why the other files are not looked at.
        inventory: where they are recorded.
        follow_links: follow links; otherwise links to other files are refused.
    """
    tree = walk(root, follow_links)
    own = {path.resolve() for path in taken}
    inventory.take("file", len(own))
    for entry in tree.others:
        if (root / entry.place).resolve() not in own:
            inventory.add(entry)
    for name, path in tree.files.items():
        if path.resolve() not in own:
            inventory.leave("file", Fate.NOT_LOOKED_AT, shown(name), rest)


class _Walk:
    """Names are relative to the root; "" is the root itself."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root = root
        self.follow_links = follow_links
        self.tree = Tree()
        self.seen = dict[tuple[int, int], str]()
        self.links: deque[str] = deque()
        self._folder("")
        while self.links:
            self._link_to_folder(self.links.popleft())

    def _folder(self, name: str) -> None:
        folder = self.root / name
        try:
            status = folder.stat()
            # scandir gives names in the file system's order, which differs between machines.
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self._leave("folder", Fate.REFUSED, name, f"it cannot be read: {error.strerror}")
            return
        # Identifies a folder, by whatever name it is reached.
        place = (status.st_dev, status.st_ino)
        if place in self.seen:
            first = shown(self.seen[place])
            self._leave("folder", Fate.REFUSED, name, f"it was read already as {first}")
            return
        self.seen[place] = name
        for entry in entries:
            path = f"{name}/{entry.name}" if name else entry.name
            try:
                self._entry(path, entry)
            except OSError as error:  # a link in a loop, or through a folder without permission
                self._leave("file", Fate.REFUSED, path, f"it cannot be read: {error.strerror}")

    def _entry(self, name: str, entry: os.DirEntry[str]) -> None:
        is_folder = entry.is_dir()
        what: What = "folder" if is_folder else "file"
        if entry.name.startswith("."):
            self._leave(what, Fate.NOT_LOOKED_AT, name, "its name begins with a dot")
        elif entry.is_symlink() and not self.follow_links:
            self._leave(what, Fate.REFUSED, name, "it is a link, and download.follow_links is off")
        elif entry.is_symlink() and is_folder:
            self.links.append(name)
        elif is_folder:
            self._folder(name)
        else:
            self._file(name, entry)

    def _link_to_folder(self, name: str) -> None:
        if self.root.resolve().is_relative_to((self.root / name).resolve()):
            reason = "it is a link to a folder that holds this one"
            self._leave("folder", Fate.REFUSED, name, reason)
        else:
            self._folder(name)

    def _file(self, name: str, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        if entry.is_symlink() and not path.exists():
            reason = f"it is a link to {shown(os.fspath(path.readlink()))}, which is not there"
            self._leave("file", Fate.REFUSED, name, reason)
        elif not entry.is_file():
            self._leave("file", Fate.REFUSED, name, "it is no regular file")
        elif not os.access(path, os.R_OK):
            self._leave("file", Fate.REFUSED, name, "there is no permission to read it")
        else:
            self.tree.files[name] = path

    def _leave(self, what: What, fate: Fate, name: str, reason: str) -> None:
        self.tree.others.append(Entry(what, fate, shown(name), reason))


def shown(name: str) -> str:
    """A file's name as text that any table can hold."""
    return os.fsencode(name).decode("utf-8", "replace")
