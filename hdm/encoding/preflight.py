"""What of `encode` cannot work, known before anything is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hdm.config import Pipeline
from hdm.errors import InputError, raised_by
from hdm.models.devices import check_device
from hdm.store import Output


def preflight(pipeline: Pipeline, made: Mapping[str, Output]) -> Iterator[InputError]:
    """Components, resolutions and devices."""
    for name in pipeline.encode.device.split(","):
        yield from raised_by(lambda name=name: check_device(name.strip(), "encode.device"))  # type: ignore[misc]
