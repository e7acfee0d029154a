"""Copies many runs of bytes at once from anywhere in the memory maps of many files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from hdm.data.pages import PagedColumn
from hdm.errors import DamagedError

PAGE_BYTES = 4096


class _Memory:
    """All memory as a numpy array: at each byte, the run that begins there."""

    def __init__(self, address: int, count: int, run_bytes: int) -> None:
        # Each item is one run of opaque bytes (V), and one begins at every byte, so items overlap.
        # True marks the memory as read-only, as the maps are.
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "data": (address, True),
            "shape": (count,),
            "typestr": f"|V{run_bytes}",
            "strides": (1,),
        }


@lru_cache(maxsize=64)
def _pages(run_bytes: int) -> np.ndarray:
    """Offsets that touch every page of a run, wherever it begins."""
    return np.append(np.arange(0, run_bytes, PAGE_BYTES), run_bytes - 1)


def gather(addresses: np.ndarray, run_bytes: int) -> np.ndarray:
    """Copy runs of equal length, one after the other.

    This is one fancy index over the address space instead of a Python call for each row. Rows of
    many shards, and the pieces of a crop, are not in one array, and a call costs more than copying
    a small latent. numpy checks only the lowest and the highest address; the caller must guarantee
    that every run is readable and stays so.

    Args:
        addresses: of the runs' first bytes, (…) int64.
        run_bytes: of each.

    Returns:
        (…, run_bytes) uint8.
    """
    if not addresses.size or not run_bytes:
        return np.empty((*addresses.shape, run_bytes), np.uint8)
    lowest = int(addresses.min())
    count = int(addresses.max()) - lowest + 1
    # The array begins at the lowest address, since one from address 0 on would span all memory.
    places = addresses.reshape(-1) - lowest
    if run_bytes >= PAGE_BYTES:
        # A byte of every page first: the processor looks up many pages at once, where a copy waits
        # for one after the other.
        np.asarray(_Memory(lowest, count + run_bytes - 1, 1))[places[:, None] + _pages(run_bytes)]
    runs = np.asarray(_Memory(lowest, count, run_bytes))
    copied: np.ndarray = runs[places]
    return copied.view(np.uint8).reshape(*addresses.shape, run_bytes)


class RowGroups:
    """The row groups of one column of several files, with rows numbered consecutively over all
    files.

    Args:
        columns: of the files.
        payload_bytes: of each row group over all files, (num_groups,) int64, to keep addresses
            inside payloads.

    Attributes:
        firsts: first row of each row group, and the number of rows at the end; (num_groups + 1,)
            int64.
        files: which column a row group is in, (num_groups,) int64.
    """

    def __init__(self, columns: Sequence[PagedColumn], payload_bytes: np.ndarray) -> None:
        self._columns = columns  # which keep the files' memory maps
        self._payload_bytes = payload_bytes
        sizes = [np.diff(column.firsts) for column in columns]
        self.firsts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]))
        self.files = np.repeat(np.arange(len(columns)), [len(size) for size in sizes])
        self._within = np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(len(size)) for size in sizes)]
        )
        # 0 marks a row group that was not read yet; its address is noted once it was checked.
        self._addresses = np.zeros(len(self.files), np.int64)

    def find(self, rows: np.ndarray) -> np.ndarray:
        """The row group that each row is in."""
        return self.firsts.searchsorted(rows, side="right") - 1

    def addresses(self, groups: np.ndarray) -> np.ndarray:
        """The addresses of some row groups' payloads, (n,) int64.

        Raises:
            DamagedError: one, touched for the first time, is not what was written; the file is
                named.
        """
        addresses: np.ndarray = self._addresses[groups]
        if not addresses.all():
            for group in np.unique(groups[addresses == 0]).tolist():
                self._addresses[group] = self._address(group)
            addresses = self._addresses[groups]
        return addresses

    def _address(self, group: int) -> int:
        column = self._columns[self.files[group]]
        payload = column.payload(int(self._within[group]))
        # `gather` reads wherever it is pointed to, so rows have to lie inside the payload that was
        # checked.
        if len(payload) != self._payload_bytes[group]:
            raise DamagedError(
                f"a row group of {column.column} has {len(payload)} bytes, not"
                f" {self._payload_bytes[group]}",
                where=column.path,
                do="run the same command again: it is made anew",
            )
        # The column keeps the payload, and so its memory map, alive.
        address: int = payload.ctypes.data
        return address
