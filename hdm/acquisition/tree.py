"""The files below a person's folder, links followed once, and what cannot be read by name and reason."""

from __future__ import annotations

import os
import stat
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
            self._entry(Path(entry.path))

    def _entry(self, path: Path) -> None:
        what: What = "folder" if path.is_dir() else "file"
        if path.name.startswith("."):
            self._leave(what, Fate.NOT_LOOKED_AT, path, "its name begins with a dot")
        elif path.is_symlink() and not self.follow_links:
            self._leave(what, Fate.REFUSED, path, "it is a link, and download.follow_links is off")
        elif path.is_symlink() and path.is_dir():
            self.links.append(path)
        elif path.is_dir():
            self._folder(path)
        else:
            self._file(path)

    def _link_to_folder(self, link: Path) -> None:
        target = link.resolve()
        if self.root.resolve().is_relative_to(target):
            reason = "it is a link to a folder that holds this one"
            self._leave("folder", Fate.REFUSED, link, reason)
        else:
            self._folder(link)

    def _file(self, path: Path) -> None:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            where = f"its link leads to {path.readlink()}: " if path.is_symlink() else ""
            self._leave("file", Fate.REFUSED, path, f"{where}{error.strerror}")
            return
        if not stat.S_ISREG(mode):
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
