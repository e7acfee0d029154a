"""Find the file that a list means, however its author spelled the name."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from hdm.errors import InputError

MANY = 20_000  # with more files, searching for a similar name would take too long


class Names:
    """The files of a folder by name.

    A name is first looked up as written, relative to its list's folder. If no file has that name,
    it is tried with `/` for a backslash, relative to the whole folder, as an absolute path into it,
    and without the list's own folder in front; then in another Unicode form, ignoring case, and
    without the suffix. The first of these that matches exactly one file counts.

    Args:
        root: the folder.
        files: paths relative to it.
        pictures: the pictures among them; only for these a name may lack the suffix.
    """

    def __init__(self, root: Path, files: Collection[str], pictures: Collection[str]) -> None:
        self.root = root
        self.files = files
        self.pictures = pictures

    def find(self, name: str, beside: str, where: str) -> str | None:
        """The file that a list in the folder `beside` calls `name`; None if there is none.

        Args:
            name: as written in the list.
            beside: folder of the list, relative to the root; "" for the root itself.
            where: the list and its line, for the error.

        Raises:
            InputError: several files match; two are named.
        """
        literal = literal_place(name, beside)
        if literal in self.files:
            return literal
        spellings = list(dict.fromkeys(self._spellings(name, beside)))
        # From the strictest form to the loosest: a loose one is tried only if no stricter one fits.
        for form, known in self._forms():
            candidates: set[str] = set()
            for spelling in spellings:
                candidates.update(known.get(form(spelling), ()))
            matches = sorted(candidates)
            if len(matches) > 1:
                raise InputError(
                    f"the name {name!r} may mean {matches[0]} or {matches[1]}",
                    where=where,
                    do="write in the list which of them is meant",
                )
            if matches:
                return matches[0]
        return None

    def near(self, name: str) -> str | None:
        """The file that a name without a match may have meant."""
        last = folded(name).rpartition("/")[2]
        same_name = self._by_last_name.get(last, [])
        if len(same_name) == 1:
            return same_name[0]
        if len(self.files) > MANY:
            return None
        near = difflib.get_close_matches(name.replace("\\", "/"), self.files, n=1, cutoff=0.6)
        return near[0] if near else None

    def _spellings(self, name: str, beside: str) -> Iterator[str]:
        slashed = name.replace("\\", "/")
        # A list may name files through a link to the folder, or by its real path.
        for root in (self.root.absolute(), self.root.resolve()):
            # The name may be absolute, or the list may be outside the folder.
            place = PurePosixPath(os.path.normpath(root / beside / slashed))
            if place.is_relative_to(root):
                yield place.relative_to(root).as_posix()
        if slashed.startswith("/"):
            return
        yield literal_place(slashed, "")
        parts = PurePosixPath(slashed).parts
        # A list may be written from above its folder: `photos/a.png` for `a.png` in `photos`.
        for folder in (beside, ""):
            own = tuple(map(folded, (self.root.resolve() / folder).parts))
            for count in range(1, len(parts)):
                if tuple(map(folded, parts[:count])) == own[-count:]:
                    yield literal_place("/".join(parts[count:]), folder)

    def _forms(self) -> Iterator[tuple[Callable[[str], str], dict[str, list[str]]]]:
        yield str, self._as_written
        yield composed, self._composed
        yield folded, self._folded
        yield folded, self._without_suffix

    @cached_property
    def _as_written(self) -> dict[str, list[str]]:
        return {file: [file] for file in self.files}

    @cached_property
    def _composed(self) -> dict[str, list[str]]:
        return _grouped(self.files, composed)

    @cached_property
    def _folded(self) -> dict[str, list[str]]:
        return _grouped(self.files, folded)

    @cached_property
    def _without_suffix(self) -> dict[str, list[str]]:
        return _grouped(
            self.pictures, lambda name: folded(str(PurePosixPath(name).with_suffix("")))
        )

    @cached_property
    def _by_last_name(self) -> dict[str, list[str]]:
        return _grouped(self.files, lambda name: folded(name).rpartition("/")[2])


def literal_place(name: str, beside: str) -> str:
    """The path, relative to the whole folder, that `name` has literally in a list in `beside`."""
    return os.path.normpath(os.path.join(beside, name))  # noqa: PTH118


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), since macOS decomposes file names."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """A name in one Unicode form and case."""
    return composed(name.casefold())


def _grouped(names: Collection[str], form: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(form(name), []).append(name)
    return groups
