"""Decoding in processes: frames in order, memory bounded, and a decoder that dies takes no picture and no stage with it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdm.config import ImageSettings
from hdm.encoding.frames import Framing
from hdm.encoding.pictures import BYTES_A_PIXEL, Decoders, Wanted, kept_pictures
from hdm.errors import DamagedError, DoesNotFitError, HdmError
from hdm.store import Output

FRAMINGS = (Framing(16, 8, 2.0), Framing(32, 8, 1.0))


def wanted(home) -> list[Wanted]:
    pictures = kept_pictures(home.inputs["download"], home.inputs["filter"]).to_pylist()
    return [
        Wanted(picture, [(framing, framing.size(picture)) for framing in FRAMINGS])
        for picture in pictures
    ]


def decoders(download: Output, ahead: int = 5, max_bytes: float = 1e9) -> Decoders:
    return Decoders(download, ImageSettings(), ahead, max_bytes, count=2)


def test_frames_of_several_sizes_from_one_decoding_in_order(home) -> None:
    asked = wanted(home)
    with decoders(home.inputs["download"]) as reading:
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


@pytest.mark.parametrize("pixels", [1, 3000, 20_000])
def test_pictures_under_way_take_no_more_memory_than_allowed(
    home, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    """Counted as the stage counts it; one that alone is over the limit is still decoded, by itself."""
    limit, lock, under_way, most, whole = (
        pixels * BYTES_A_PIXEL,
        threading.Lock(),
        [],
        [],
        Decoders._frames,
    )

    def counted(self: Decoders, one: Wanted) -> object:
        with lock:
            under_way.append(one.cost_bytes)
            most.append((len(under_way), sum(under_way)))
        try:
            return whole(self, one)
        finally:
            with lock:
                under_way.remove(one.cost_bytes)

    monkeypatch.setattr(Decoders, "_frames", counted)
    asked = wanted(home)
    with decoders(home.inputs["download"], max_bytes=limit) as reading:
        assert len(list(reading.read(asked))) == len(asked)
    assert all(total <= limit or count == 1 for count, total in most)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.001)


def test_a_decoder_that_is_killed_loses_no_picture(home) -> None:
    asked = wanted(home)
    with decoders(home.inputs["download"], ahead=1) as reading:
        found = []
        for number, frames in enumerate(reading.read(asked)):
            found.append(frames)
            if number in (3, 9):
                decoder = reading.idle.get()
                kill(decoder.process.pid)
                reading.idle.put(decoder)
    assert [frames is None for frames in found] == [
        one.picture["key"] in home.broken for one in asked
    ]


# A decoder like the real one, but for the end that one picture is given.
DEADLY = """
import os, signal, sys
from hdm.encoding import decoder
real = decoder.answer
def answer(request, settings):
    if request["offset"] == {offset} and request["path"].endswith("{tar}"):
        os.kill(os.getpid(), signal.{end})
    return real(request, settings)
decoder.answer = answer
decoder.main()
"""


@pytest.mark.parametrize("end", ["SIGSEGV", "SIGKILL"])
def test_a_picture_that_ends_its_decoder_is_named(
    home, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = wanted(home)
    deadly = asked[12].picture
    program = DEADLY.format(offset=deadly["offset"], tar=f"{deadly['shard']:05d}.tar", end=end)
    with decoders(home.inputs["download"]) as reading:
        for _ in range(reading.count):
            decoder = reading.idle.get()
            decoder.stop()
            decoder.command = [sys.executable, "-c", program, decoder.command[-1]]
            decoder._start()
            reading.idle.put(decoder)
        if (
            end == "SIGKILL"
        ):  # so the kernel ends what takes too much memory: nothing that may be left out silently
            with pytest.raises(DoesNotFitError, match=deadly["key"]):
                list(reading.read(asked))
            return
        with caplog.at_level(logging.WARNING):
            found = list(reading.read(asked))
    lost = {one.picture["key"] for one, frames in zip(asked, found, strict=True) if frames is None}
    assert lost == home.broken | {deadly["key"]}
    assert any(
        deadly["key"] in record.message and "-11" in record.message for record in caplog.records
    )


def test_decoders_that_cannot_start_are_an_error_and_no_lost_picture(
    home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        pytest.raises(HdmError, match="can be started"),
        decoders(home.inputs["download"]) as reading,
    ):
        list(reading.read(wanted(home)))


def test_what_is_not_what_was_downloaded_is_damage(home) -> None:
    path = home.inputs["download"].file("images-00001.tar")
    path.unlink()
    with (
        pytest.raises(DamagedError, match=r"images-00001\.tar"),
        decoders(home.inputs["download"]) as reading,
    ):
        list(reading.read(wanted(home)))
    path.mkdir()
    with (
        pytest.raises(HdmError, match="cannot be read") as error,
        decoders(home.inputs["download"]) as reading,
    ):
        list(reading.read(wanted(home)))
    assert not isinstance(error.value, DamagedError)


KILLED = """
import sys, time
from pathlib import Path
from hdm.config import ImageSettings
from hdm.encoding.pictures import Decoders
from hdm.store import read_output
with Decoders(read_output(Path(sys.argv[1])), ImageSettings(), 4, 1e9, count=2) as reading:
    workers = [reading.idle.get() for _ in range(2)]
    for worker in workers:
        assert worker.answers.readline()
    print(*(worker.process.pid for worker in workers), flush=True)
    time.sleep(60)
"""


def test_decoders_do_not_outlive_the_process_that_started_them(home) -> None:
    path = str(home.inputs["download"].path)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
