"""Every number that a configuration holds, found by walking the types: tests and fault scripts try
values on all of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Union

from pydantic import BaseModel

from hdm.values import Within

NUMBERS = (int, float)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A number somewhere in a configuration.

    Args:
        path: names and positions from the top, as ("train", "phases", 0, "optimizer", "betas", 1).
        kind: int or float.
        bounds: those that its type declares; None: none.
        around: for a number inside tuples, by length of the path to the tuple: the tuple's other
            items.
    """

    path: tuple[str | int, ...]
    kind: type
    bounds: Within | None
    around: Mapping[int, tuple[Any, ...]]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    def override(self, value: str) -> str:
        """`stage.field=value` in YAML that gives this number a value, the tuples around it
        whole.
        """
        text, cut = value, len(self.path)
        for start in sorted(self.around, reverse=True):
            items = [json.dumps(item) for item in self.around[start]]
            items[int(self.path[start])] = text
            text, cut = f"[{', '.join(items)}]", start
        return f"{'.'.join(map(str, self.path[:cut]))}={text}"


def leaves(model: type) -> Iterator[Leaf]:
    """The numbers of a pydantic model or a dataclass."""
    yield from _of_fields(model, ())


def _of_fields(owner: type, path: tuple[str | int, ...]) -> Iterator[Leaf]:
    hints = typing.get_type_hints(owner, include_extras=True)
    if issubclass(owner, BaseModel):
        names = list(owner.model_fields)
    else:
        assert dataclasses.is_dataclass(owner)
        names = [field.name for field in dataclasses.fields(owner)]
    for name in names:
        yield from _of_type(hints[name], (*path, name), None, {})


def _of_type(
    hint: Any, path: tuple[str | int, ...], bounds: Within | None, around: Mapping[int, Any]
) -> Iterator[Leaf]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        found = next((item for item in arguments[1:] if isinstance(item, Within)), bounds)
        yield from _of_type(arguments[0], path, found, around)
    elif origin in (Union, types.UnionType):
        for one in arguments:
            yield from _of_type(one, path, bounds, around)
    elif origin is tuple and arguments[-1] is ...:
        yield from _of_type(
            arguments[0], (*path, 0), None, _within_tuple(arguments[:1], around, path)
        )
    elif origin is tuple:
        for place, one in enumerate(arguments):
            yield from _of_type(one, (*path, place), None, _within_tuple(arguments, around, path))
    elif hint in NUMBERS:
        yield Leaf(path, hint, bounds, around)
    elif isinstance(hint, type) and (issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint)):
        yield from _of_fields(hint, path)


def _within_tuple(
    items: tuple[Any, ...], around: Mapping[int, Any], path: tuple[str | int, ...]
) -> Mapping[int, Any]:
    """`around` with one more tuple, whose items are the least that each type allows; none for a
    tuple of models.
    """
    least = [_least(item) for item in items]
    return around if None in least else {**around, len(path): tuple(least)}


def _least(hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return [_least(item) for item in typing.get_args(hint)]
    bounds = [item for item in typing.get_args(hint) if isinstance(item, Within)]
    return edges(typing.get_args(hint)[0], bounds[0])[0] if bounds else None


def edges(kind: type, bounds: Within) -> tuple[float, float]:
    """The least and the greatest value that are allowed."""
    low, high = kind(bounds.low), kind(bounds.high)
    if kind is int:
        return low + bounds.above, high - bounds.below
    return (
        math.nextafter(low, math.inf) if bounds.above else low,
        math.nextafter(high, -math.inf) if bounds.below else high,
    )
