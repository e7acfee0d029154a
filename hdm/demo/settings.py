"""The embedded data set."""

from __future__ import annotations

from typing import Annotated

from hdm import values
from hdm.settings import Settings
from hdm.values import Within

SCENES_VERSION = 2
"""Of the embedded data set: raised when the same settings give other pictures or captions."""


class ScenesSettings(Settings):
    """The embedded data set: pictures with known truth, made from a seed."""

    count: Annotated[int, Within(1, 10_000_000)] = 4000
    """Good pictures."""
    seed: values.Seed = 0
    faults: Annotated[float, Within(0, 0.5)] = 0.12
    """Planted bad items (corrupt, duplicate, blurred, mislabelled, …) as a share of `count`."""
    size_px: Annotated[int, Within(16, 2048)] = 64
    """Shorter side."""
    uncaptioned: values.Share = 0.1
    """Share of good pictures served without a caption, for the captioner."""
