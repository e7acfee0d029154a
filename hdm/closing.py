"""A base class for context managers that close at the end of the block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """A context manager that is ready when constructed and closes at the end of its block."""

    @abstractmethod
    def close(self) -> None:
        """Release files, threads and processes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
