"""The process that decodes pictures: `python -m hdm.encoding.decoder SETTINGS`.

A request is one line of JSON on its input, the answer one line of JSON on its output and then the pixels of the frames, one after
the other. It ends when its input closes, which it also does when the process that asks dies. A picture that kills its decoder
(a fault in an image library's C code) kills this process alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from hdm.config import ImageSettings
from hdm.data.images import BadImage, decode

READY = b"ready\n"
NICE = 5
"""Where the encoder runs on the same cores, its threads wait for each other: one that is put off puts off all."""
DAMAGED, REFUSED, UNREADABLE = "damaged", "refused", "unreadable"


def answer(
    request: Mapping[str, Any], settings: ImageSettings
) -> tuple[dict[str, str], list[np.ndarray]]:
    """Decode one picture, cut and resize it.

    Args:
        request: path, offset and bytes of the file in a tar, the start of its sha256, the width and height that it must have, and
            frames: for each the (left, top, right, bottom) that is kept, in pixels, and the (width, height) that it is brought to.
        settings: how pictures are decoded.

    Returns:
        An empty mapping and a frame (h, w, 3) uint8 for each that was asked for; or what is wrong, and none.
    """
    try:
        data = _read(request["path"], request["offset"], request["bytes"])
    except OSError as error:
        return {UNREADABLE: str(error)}, []
    if not hashlib.sha256(data).hexdigest().startswith(request["sha256"]):
        return {DAMAGED: "is not what was downloaded"}, []
    try:
        pixels = decode(data, settings).pixels
    except BadImage as error:
        return {REFUSED: f"cannot be decoded: {error}"}, []
    height, width = pixels.shape[:2]
    if (width, height) != (request["width"], request["height"]):
        return {
            REFUSED: f"is {width} × {height}, and was measured as {request['width']} × {request['height']}"
        }, []
    image = Image.fromarray(pixels)
    resized = (
        image.resize(tuple(size), Image.Resampling.LANCZOS, box=tuple(box))
        for box, size in request["frames"]
    )
    return {}, [np.asarray(frame) for frame in resized]


def _read(path: str, offset: int, num_bytes: int) -> bytes:
    """What is there; a tar that is missing or too short gives fewer bytes, which the hash tells."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (a path object for every picture is slower)
            file.seek(offset)
            return file.read(num_bytes)
    except FileNotFoundError:
        return b""


def serve(requests: BinaryIO, answers: BinaryIO, settings: ImageSettings) -> None:
    """Say that all is loaded, and answer until there are no more requests."""
    answers.write(READY)
    answers.flush()
    for line in requests:
        said, frames = answer(json.loads(line), settings)
        answers.write(json.dumps(said).encode() + b"\n")
        for frame in frames:
            answers.write(np.ascontiguousarray(frame).data)
        answers.flush()


def main() -> None:
    """Serve the process that started this one."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches it too, but the end is when its input closes
    os.nice(NICE)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    serve(sys.stdin.buffer, answers, ImageSettings.model_validate_json(sys.argv[1]))


if __name__ == "__main__":
    main()
