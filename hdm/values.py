"""The kinds of value of settings and options, each with its bounds: numbers, sizes, devices.

Settings annotate their fields with them and the command line its options, so that both accept and
refuse the same values. Every number has a finite upper bound; NaN, infinity and booleans are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Number = int | float


@dataclass(frozen=True)
class Within:
    """Bounds of a number, for `Annotated`.

    Args:
        low: the least value.
        high: the greatest value.
        above: `low` itself is refused.
        below: `high` itself is refused.
    """

    low: Number
    high: Number
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        low = f"{'greater than' if self.above else 'at least'} {_written(self.low)}"
        return f"{low} and {'less than' if self.below else 'at most'} {_written(self.high)}"

    def __contains__(self, value: Number) -> bool:
        inside = self.low < value if self.above else self.low <= value
        return inside and (value < self.high if self.below else value <= self.high)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        kind = "a whole number" if source is int else "a number"

        def check(value: Any, parse: Callable[[Any], Number]) -> Number:
            # Integers are compared before parsing: a float does not hold every one of them.
            outside = isinstance(value, bool) or (isinstance(value, int) and value not in self)
            try:
                if not outside and (number := parse(value)) in self:
                    return number
            except ValidationError:  # pydantic's own message lacks the bounds
                pass
            raise PydanticCustomError(
                "out_of_bounds", "must be {kind}, {bounds}", {"kind": kind, "bounds": str(self)}
            )

        return core_schema.no_info_wrap_validator_function(check, handler(source))


def _written(bound: Number) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


Share = Annotated[float, Within(0, 1)]
"""A share of a whole, in [0, 1]."""
PositiveShare = Annotated[float, Within(0, 1, above=True)]
Rate = Annotated[float, Within(0, 1, below=True)]
"""A share below 1, such as a dropout or a decay."""
EmaLength = Annotated[float, Within(0.001, 0.28)]
"""The length of a power-function average, as a share of a phase; EDM2's (arXiv 2312.02696) are
below 0.29.
"""
Weight = Annotated[float, Within(0, 1e6)]
"""The weight of a term in a sum; 0 switches it off."""
PositiveWeight = Annotated[float, Within(1e-6, 1e6)]
LearningRate = Annotated[float, Within(0, 100, above=True)]
Guidance = Annotated[float, Within(0, 1000)]
"""Scale of classifier-free guidance."""
Shift = Annotated[float, Within(0.001, 1000)]
"""A shift of sampling or training timesteps towards noise."""
Temperature = Annotated[float, Within(0.01, 100)]
Cosine = Annotated[float, Within(-1, 1)]
Score = Annotated[float, Within(-1e6, 1e6)]
"""A head's score for a picture, on the head's own scale."""
Grey = Annotated[float, Within(0, 255)]
"""A difference in grey levels of 8 bits."""
Aspect = Annotated[float, Within(1, 1000)]
"""Longer side over shorter side."""
Megapixels = Annotated[float, Within(0, 4000, above=True)]
Seconds = Annotated[float, Within(0, 31_536_000, above=True)]
"""Up to a year."""
Minutes = Annotated[float, Within(0, 525_600, above=True)]
"""Up to a year."""
Price = Annotated[float, Within(0, 1e9)]
"""In the reader's currency."""
Tflops = Annotated[float, Within(0.001, 1e6)]
"""10¹² operations a second, of one device."""

Seed = Annotated[int, Within(0, 2**63 - 1)]
Count = Annotated[int, Within(1, 10**12)]
"""A number of images, items or steps over a whole run."""
CountOrNone = Annotated[int, Within(0, 10**12)]
"""The same, or 0."""
Few = Annotated[int, Within(1, 10_000)]
"""A naturally small number, such as captions per picture, snapshots, sampling steps or channels."""
Retries = Annotated[int, Within(0, 20)]
Batch = Annotated[int, Within(1, 1_048_576)]
"""The number of items processed together."""
Side = Annotated[int, Within(8, 65_536)]
"""The side of a generated or training picture, in pixels."""
MinimumSide = Annotated[int, Within(1, 65_536)]
"""A limit on the sides of source pictures, in pixels."""
Tokens = Annotated[int, Within(1, 65_536)]
"""A number of text tokens."""
Characters = Annotated[int, Within(1, 1_000_000)]
FileBytes = Annotated[int, Within(1, 2_000_000_000)]
"""The size of a file that is read into memory."""
Megabytes = Annotated[int, Within(1, 1_048_576)]
Width = Annotated[int, Within(1, 65_536)]
"""The width of a model's layer, in features."""
Blocks = Annotated[int, Within(0, 1000)]
"""A number of a model's blocks, or the index of one, from 0."""
PositiveBlocks = Annotated[int, Within(1, 1000)]
Workers = Annotated[int, Within(1, 4096)]
"""A number of simultaneous threads, processes, devices or requests."""


def size_of(text: str) -> tuple[int, int]:
    """Width and height in pixels of a size like "1024x768".

    Raises:
        ValueError: it is not WIDTHxHEIGHT, or a side is out of bounds.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    bounds = Side.__metadata__[0]  # type: ignore[attr-defined]
    if not all(side in bounds for side in sides):
        raise ValueError(f"must be WIDTHxHEIGHT, as 1024x768, each side {bounds}")
    return sides


def faults_of(error: ValidationError) -> list[str]:
    """Each fault of refused values, as "field.name: what is wrong with it"."""
    faults = []
    for fault in error.errors(include_url=False):
        field = ".".join(map(str, fault["loc"]))
        faults.append(f"{field}: {fault['msg']}" if field else fault["msg"])
    return faults


def multiples_beside(value: int, unit: int) -> tuple[int, ...]:
    """The nearest multiples of `unit` that can replace `value`: the one below, unless it is 0, and
    the one above.
    """
    below = value // unit * unit
    return (below, below + unit) if below else (unit,)


def _is_size(text: str) -> str:
    size_of(text)
    return text


def device_of(text: str) -> str:
    """The text unchanged, if it names a device.

    Raises:
        ValueError: it does not.
    """
    if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d{1,4})?", text):
        raise ValueError("must be auto, cpu, cuda or one device, as cuda:1")
    return text


def _are_devices(text: str) -> str:
    for name in text.split(","):
        try:
            device_of(name.strip())
        except ValueError as error:
            raise ValueError(f"{error}; or several with commas between, as cuda:0,cuda:2") from None
    return text


def _is_colour(text: str) -> str:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError("must be a colour as #rrggbb, for example #ffffff")
    return text


Colour = Annotated[str, AfterValidator(_is_colour)]
"""#rrggbb."""
Size = Annotated[str, AfterValidator(_is_size)]
"""WIDTHxHEIGHT in pixels."""
Device = Annotated[str, AfterValidator(device_of)]
"""auto: the accelerator if there is one, else the CPU."""
Devices = Annotated[str, AfterValidator(_are_devices)]
"""One or several devices, separated by commas."""
