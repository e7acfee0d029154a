"""What is used in a `with` block, at whose end it closes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """A context manager that is ready as it is made, and closes at the end of the block."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files, threads and processes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
