"""What a scene is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Layout = Literal["one", "left_of", "above", "row", "column", "two_above"]


@dataclass(frozen=True)
class Thing:
    """One object. `centre` in [0, 1]², as shares of width and height; `extent` as a share of the
    shorter side.
    """

    kind: str
    colour: str
    size: str
    place: str
    centre: tuple[float, float]
    extent: float
    angle: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Background:
    """A pale ground. `period` is a share of the shorter side; `angle` in radians; `second` is
    unused where plain.
    """

    kind: str
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    period: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `layout` says how its things lie, in the order of the captions (left to
    right, top to bottom).
    """

    width: int
    height: int
    background: Background
    layout: Layout
    things: tuple[Thing, ...]

    @property
    def truth(self) -> dict[str, Any]:
        """Plain values for a JSON record: layout, and kind, colour, size, place and centre of each
        object.
        """
        things = [
            {
                "kind": t.kind,
                "colour": t.colour,
                "size": t.size,
                "place": t.place,
                "centre": [round(c, 4) for c in t.centre],
            }
            for t in self.things
        ]
        return {"layout": self.layout, "background": self.background.kind, "things": things}
