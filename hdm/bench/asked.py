"""What an item of the bench is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hdm.planning.measured_file import Group, Row


@dataclass(frozen=True)
class Asked:
    """How to measure.

    Args:
        device: cuda or cpu.
        tiny: take sizes that a CPU measures in seconds.
    """

    device: str
    tiny: bool

    @property
    def precision(self) -> str:
        """Of training steps: what this kind of device is trained in."""
        return "float32" if self.device == "cpu" else "bfloat16"


Measure = Callable[[Asked], Iterator[Row]]


@dataclass(frozen=True)
class Item:
    """One thing to measure.

    Args:
        name: on the command line.
        group: of its rows.
        seconds: it may take, at most; with `--minutes` less, if less is left.
        measure: gives its rows as they are found. A module's own function, since it runs in
            another process.
    """

    name: str
    group: Group
    seconds: float
    measure: Measure
