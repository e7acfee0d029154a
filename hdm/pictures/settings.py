"""How picture files are read."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from hdm import values
from hdm.settings import Settings, WithExecution, runtime
from hdm.values import Within


class ImageSettings(Settings):
    """How picture files become RGB, and what one of them may take: one that takes more is refused
    and counted.
    """

    matte: values.Colour = "#ffffff"
    """Colour that shows behind transparent pixels, as #rrggbb."""
    max_megapixels: values.Megapixels = 144.0
    """Pictures of so many million pixels or more are refused before decoding."""
    max_scans: Annotated[int, Within(1, 10_000)] = 100
    """JPEG files with more scans are refused. Progressive files of usual programs have about 10;
    each scan goes over all pixels.
    """
    max_frames: Annotated[int, Within(1, 10_000_000)] = 10_000
    """PNG, WebP, AVIF and HEIF files that announce more frames are refused: their readers look at
    each when they open a file.
    """
    max_memory_mb: Annotated[int, Within(256, 1_000_000)] = 4096
    """Memory of a process that decodes, of which its program takes about 100; the largest picture
    that is allowed needs 24 bytes a pixel."""
    max_seconds: Annotated[float, Within(1, 3600)] = 60.0
    """Seconds of computing for one picture, and ten times as many on the clock."""
    animated: Literal["first_frame", "reject"] = "first_frame"
    decode_mb: values.Megabytes = runtime(2048)
    """Memory for pictures that are being decoded or wait to be used; one that needs more is decoded
    while no other is.
    """


class WithImages(WithExecution, Protocol):
    """The part of a pipeline that says how pictures are decoded."""

    @property
    def images(self) -> ImageSettings: ...
