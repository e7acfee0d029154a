"""Frames of kept pictures, cut in the processes that decode: in order, of several sizes, and damage
is told.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hdm.encoding.frames import Framing
from hdm.encoding.pictures import FrameReader, Request, kept_pictures
from hdm.errors import DamagedError, HdmError
from hdm.pictures.settings import ImageSettings
from hdm.store import Output

FRAMINGS = (Framing(16, 8, 2.0), Framing(32, 8, 1.0))


def wanted(home) -> list[Request]:
    pictures = kept_pictures(home.inputs["download"], home.inputs["filter"]).to_pylist()
    return [
        Request(picture, [(framing, framing.size(picture)) for framing in FRAMINGS])
        for picture in pictures
    ]


def frame_reader(download: Output) -> FrameReader:
    return FrameReader(download, ImageSettings(), ahead=5, count=2)


def test_frames_of_several_sizes_from_one_decoding_in_order(home) -> None:
    asked = wanted(home)
    with frame_reader(home.inputs["download"]) as reading:
        found = list(reading.read(asked))
    assert len(found) == len(asked)
    for one, frames in zip(asked, found, strict=True):
        key = one.picture["key"]
        assert (frames is None) == (key in home.broken)
        for (framing, size), frame in zip(one.frames, frames or [], strict=frames is not None):
            pixels = home.pixels[key]
            height, width = pixels.shape[:2]
            expected = Image.fromarray(pixels).resize(
                size, Image.Resampling.LANCZOS, box=framing.cut(width, height)
            )
            np.testing.assert_array_equal(frame.pixels, np.asarray(expected))
            assert (frame.key, frame.width, frame.height) == (key, width, height)


def test_what_is_not_what_was_downloaded_is_damage(home) -> None:
    path = home.inputs["download"].file("images-00001.tar")
    path.unlink()
    with (
        pytest.raises(DamagedError, match=r"images-00001\.tar"),
        frame_reader(home.inputs["download"]) as reading,
    ):
        list(reading.read(wanted(home)))
    path.mkdir()
    with (
        pytest.raises(HdmError, match="cannot be read") as error,
        frame_reader(home.inputs["download"]) as reading,
    ):
        list(reading.read(wanted(home)))
    assert not isinstance(error.value, DamagedError)
