"""Noto Emoji's training pictures, from an address on the web or a folder with the same files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hdm.acquisition import source_fingerprints
from hdm.acquisition.inventory import Inventory
from hdm.acquisition.items import Item, Url, read_file
from hdm.acquisition.remote_list import SCHEMES
from hdm.acquisition.settings import DownloadSettings
from hdm.emoji.catalogue import training_pictures
from hdm.errors import InputError
from hdm.files import canonical_json
from hdm.keys import key_of

LICENCE = "Apache-2.0"


class EmojiPictures:
    """The pictures that `hdm.emoji.catalogue` lists. Their keys do not depend on location.

    Args:
        source: the address of Noto Emoji's folder of PNG files, or a copy of it on this machine.
        settings: `max_bytes`.

    Raises:
        InputError: the folder is not there, or holds none of the pictures.
    """

    def __init__(self, source: str, settings: DownloadSettings) -> None:
        self.settings = settings
        self.fetched = source.startswith(SCHEMES)
        self.place = source.rstrip("/")
        self.folder = Path(source).expanduser()
        if not self.fetched and not self._files():
            raise InputError(
                f"there is no {training_pictures()[0].emoji.file} or any other picture of Noto"
                " Emoji",
                where=self.folder,
                do=(
                    "name Noto Emoji's folder png/128, or leave download.source as it is to fetch"
                    " the pictures"
                ),
            )

    def fingerprint(self) -> dict[str, Any]:
        listed = [[one.emoji.file, *one.captions] for one in training_pictures()]
        # The list is part of the package: another release may list other pictures or captions.
        digests = {"list": hashlib.sha256(canonical_json(listed)).hexdigest()}
        if self.fetched:
            return {**digests, "address": self.place}
        return {**digests, **source_fingerprints.tree((path.name, path) for path in self._files())}

    def total(self) -> int:
        return len(training_pictures())

    def items(self, inventory: Inventory | None = None) -> Iterator[Item]:
        inventory = inventory or Inventory()
        for one in training_pictures():
            inventory.take("line")
            name = one.emoji.file
            load = (
                partial(Url, f"{self.place}/{name}")
                if self.fetched
                else partial(read_file, self.folder / name, self.settings.max_bytes)
            )
            yield Item(key_of(name), name, one.captions, LICENCE, load)

    def _files(self) -> list[Path]:
        paths = (self.folder / one.emoji.file for one in training_pictures())
        return [path for path in paths if path.is_file()]
