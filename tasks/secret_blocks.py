"""Read Prefect's Secret blocks for references `block:NAME` in settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

from hdm.errors import InputError
from hdm.secrets import READERS


@contextlib.contextmanager
def provided() -> Iterator[None]:
    """Allow settings to name Secret blocks inside this `with` block; each is read once."""
    READERS["block"] = cache(read_block)
    try:
        yield
    finally:
        del READERS["block"]


def read_block(name: str) -> str:
    """The secret in the block of that name.

    Raises:
        InputError: the server has no such block.
    """
    from prefect.blocks.system import Secret  # reads its settings, which `hdm run` makes first

    try:
        block = cast(Any, Secret).load(name, _sync=True)  # its types lack `_sync`
    except ValueError as error:
        raise InputError(
            f"Prefect's server has no Secret block {name}",
            where=f"block:{name}",
            do="make it on Prefect's page under Blocks, of the type Secret",
        ) from error
    return str(block.get())
