"""What the download asks of a source's reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from hdm.acquisition.inventory import Inventory
from hdm.acquisition.items import Item


class Reader(Protocol):
    """A source that can be read again and again, in one order."""

    @property
    def fetched(self) -> bool:
        """Whether its items are URLs to be fetched."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the content, wherever it lies."""
        ...

    def total(self) -> int | None:
        """How many items there are, if that is cheap to know."""
        ...

    def items(self, inventory: Inventory | None = None) -> Iterator[Item]:
        """The items in order, with bounded memory.

        Args:
            inventory: where the fate of everything in the source is written down; None: nowhere.

        Raises:
            InputError: a name in a list may mean several files.
        """
        ...
