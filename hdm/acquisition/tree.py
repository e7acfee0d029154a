"""The files below a person's folder, links followed once, and what cannot be read by name and reason."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from hdm.acquisition.inventory import Entry, Fate, What


@dataclass
class Tree:
    """What is below a folder.

    Args:
        files: path relative to the folder → path, of regular files that can be read, hidden ones left out.
        left: everything else.
    """

    files: dict[str, Path] = field(default_factory=dict)
    left: list[Entry] = field(default_factory=list)


def walk(root: Path, follow_links: bool) -> Tree:
    """Look at everything below a folder, in order of name.

    A link to a folder is read under the link's own name, after all that is no link, and only if its target was not read already: so
    loops end. A link to a folder that holds this one is refused.

    Args:
        root: the folder.
        follow_links: else links are refused.
    """
    return _Walk(root, follow_links).tree


class _Walk:
    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.tree, self.seen = Tree(), dict[tuple[int, int], str]()
        self.links: deque[Path] = deque()
        self._folder(root)
        while self.links:
            self._link_to_folder(self.links.popleft())

    def _folder(self, folder: Path) -> None:
        status = folder.stat()
        place = (status.st_dev, status.st_ino)
        if place in self.seen:
            self._leave(
                "folder", Fate.REFUSED, folder, f"it was read already as {self.seen[place]}"
            )
            return
        self.seen[place] = self._name(folder)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self._leave("folder", Fate.REFUSED, folder, f"it cannot be read: {error.strerror}")
            return
        for entry in entries:
            self._entry(entry)

    def _entry(self, entry: os.DirEntry[str]) -> None:
        path, is_folder = Path(entry.path), entry.is_dir()
        what: What = "folder" if is_folder else "file"
        if entry.name.startswith("."):
            self._leave(what, Fate.NOT_LOOKED_AT, path, "its name begins with a dot")
        elif entry.is_symlink() and not self.follow_links:
            self._leave(what, Fate.REFUSED, path, "it is a link, and download.follow_links is off")
        elif entry.is_symlink() and is_folder:
            self.links.append(path)
        elif is_folder:
            self._folder(path)
        else:
            self._file(path, entry)

    def _link_to_folder(self, link: Path) -> None:
        target = link.resolve()
        if self.root.resolve().is_relative_to(target):
            reason = "it is a link to a folder that holds this one"
            self._leave("folder", Fate.REFUSED, link, reason)
        else:
            self._folder(link)

    def _file(self, path: Path, entry: os.DirEntry[str]) -> None:
        if entry.is_symlink() and not path.exists():
            reason = f"it is a link to {shown(os.fspath(path.readlink()))}, which is not there"
            self._leave("file", Fate.REFUSED, path, reason)
        elif not entry.is_file():
            self._leave("file", Fate.REFUSED, path, "it is no regular file")
        elif not os.access(path, os.R_OK):
            self._leave("file", Fate.REFUSED, path, "there is no permission to read it")
        else:
            self.tree.files[self._name(path)] = path

    def _leave(self, what: What, fate: Fate, path: Path, reason: str) -> None:
        self.tree.left.append(Entry(what, fate, shown(self._name(path)), reason))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def shown(name: str) -> str:
    """A file's name as text that any table can hold."""
    return os.fsencode(name).decode("utf-8", "replace")
