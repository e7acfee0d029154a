"""Damage to files, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from hdm.errors import DamagedError


def found_by_flipping(
    path: Path, positions: Iterable[int], read: Callable[[Path], object]
) -> set[int]:
    """Flip one bit of each byte in turn: the positions where reading says so.

    Fails where a flipped byte gives other content without an error.
    """
    whole = bytearray(path.read_bytes())
    truth = read(path)
    rng = np.random.default_rng(1)
    found = set()
    for position in positions:
        bit = 1 << int(rng.integers(8))
        whole[position] ^= bit
        path.write_bytes(whole)
        whole[position] ^= bit
        try:
            assert read(path) == truth, f"the flipped byte {position} changed the content unseen"
        except DamagedError as error:
            found.update([position] if error.where == path else [])
    path.write_bytes(whole)
    return found
