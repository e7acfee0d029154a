"""The protocol of a source's reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from hdm.acquisition.inventory import Inventory
from hdm.acquisition.items import Item


class Reader(Protocol):
    """A source that can be read repeatedly, always in the same order."""

    @property
    def fetched(self) -> bool:
        """Whether its items are URLs to be fetched."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the content, independent of its location."""
        ...

    def total(self) -> int | None:
        """Number of items, if it is cheap to know."""
        ...

    def items(self, inventory: Inventory | None = None) -> Iterator[Item]:
        """The items in order, with bounded memory.

        Args:
            inventory: records the fate of everything in the source; None: it is not recorded.

        Raises:
            InputError: a name in a list may mean several files.
        """
        ...
