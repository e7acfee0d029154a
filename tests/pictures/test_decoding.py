"""Pictures in processes of their own: a bad one costs its own answer, within limits, and takes no
process's parent with it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hdm.errors import DoesNotFitError, HdmError
from hdm.pictures.decoding import Answer, Asked, Decoders, header, picture_cost, pixels
from hdm.pictures.reading import BadImage, decode
from hdm.pictures.settings import ImageSettings
from tests.pictures.test_images import encoded, photograph, png

GOOD = encoded(photograph(), "PNG")


# Work that goes wrong, for the processes to call.


def by_order(data: bytes, settings: ImageSettings) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Do what the file says, or decode it."""
    if data == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if data == b"fault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"compute":
        while True:
            pass
    if data == b"sleep":
        time.sleep(10_000)
    if data == b"allocate":
        np.ones(10**9)
    if data == b"mistake":
        raise ZeroDivisionError
    if data == b"limits":
        return {"memory": resource.getrlimit(resource.RLIMIT_DATA)[0]}, []
    return pixels(data, settings)


def outcomes(decoders: Decoders, files: list[bytes]) -> list[str]:
    asked = (Asked(str(number), partial(bytes, data)) for number, data in enumerate(files))
    return [outcome(answer.result) for answer in decoders.map(asked)]


def outcome(result: Callable[[], Answer]) -> str:
    try:
        found = result()
    except BadImage as refusal:
        return refusal.status
    np.testing.assert_array_equal(found.arrays[0], np.asarray(photograph()))
    return "ok"


def test_answers_come_in_order_with_what_the_work_gave() -> None:
    files = [encoded(photograph(8 + number, 6), "PNG") for number in range(30)]
    with Decoders(ImageSettings(), pixels, count=2) as decoders:
        asked = [Asked(str(number), partial(bytes, data)) for number, data in enumerate(files)]
        found = [answer.result().arrays[0] for answer in decoders.map(asked)]
    for data, array in zip(files, found, strict=True):
        np.testing.assert_array_equal(array, decode(data, ImageSettings()).pixels)


def test_a_header_and_a_refusal_are_those_of_the_library() -> None:
    with Decoders(ImageSettings(), header, count=1) as decoders:
        assert decoders.ask("a", GOOD).facts == {"format": "PNG", "width": 48, "height": 32}
        with pytest.raises(BadImage) as refusal:
            decoders.ask("b", b"<html>")
    assert refusal.value.status == "not_image"


def test_large_pictures_reduced() -> None:
    with Decoders(ImageSettings(), pixels, count=1) as decoders:
        found = decoders.ask("a", encoded(photograph(64, 48), "PNG"), reduced_to_px=16).arrays[0]
    whole = np.asarray(photograph(64, 48), float)[:, :63]
    means = whole.reshape(16, 3, 21, 3, 3).mean(axis=(1, 3))
    assert found.shape == (16, 22, 3)
    np.testing.assert_allclose(found[:, :21], means, atol=1)


@pytest.mark.parametrize(
    ("order", "status"),
    [(b"compute", "too_slow"), (b"allocate", "too_much_memory"), (b"fault", "crashes")],
)
def test_the_offending_picture_alone_is_refused(order: bytes, status: str) -> None:
    settings = ImageSettings(max_seconds=1.0, max_memory_mb=1024)
    with Decoders(settings, by_order, count=2) as decoders:
        found = outcomes(decoders, [GOOD, GOOD, order, GOOD, GOOD, GOOD])
    assert found == ["ok", "ok", status, "ok", "ok", "ok"]


def test_a_picture_that_waits_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoders(ImageSettings(max_seconds=1.0), by_order, count=1) as decoders:
        program = "import hdm.pictures.decoder as d; d.WALL = 0.2; d.main()"
        decoders.processes[0].command[1:3] = ["-c", program]
        assert outcomes(decoders, [GOOD, b"sleep", GOOD]) == ["ok", "too_slow", "ok"]


def test_the_process_has_the_memory_that_is_set() -> None:
    with Decoders(ImageSettings(max_memory_mb=700), by_order, count=1) as decoders:
        assert decoders.ask("a", b"limits").facts["memory"] == 700 << 20


def test_a_killed_process_loses_no_picture_and_twice_for_one_is_for_want_of_memory() -> None:
    """The kernel kills what takes more than the machine has: that says nothing of the picture, so
    nothing is left out silently.
    """
    with Decoders(ImageSettings(), by_order, count=1) as decoders:
        assert outcomes(decoders, [GOOD]) == ["ok"]
        running = decoders.processes[0].process
        assert running
        running.kill()
        assert outcomes(decoders, [GOOD, GOOD]) == ["ok", "ok"]
        with pytest.raises(DoesNotFitError, match="picture b"):
            decoders.ask("b", b"kill")
        assert outcomes(decoders, [GOOD]) == ["ok"]


def test_a_signal_to_the_whole_group_costs_no_picture() -> None:
    """As when a service manager stops a run, which goes on until it has saved."""
    with Decoders(ImageSettings(), by_order, count=1) as decoders:
        assert outcomes(decoders, [GOOD]) == ["ok"]
        running = decoders.processes[0].process
        assert running
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            running.send_signal(number)
        assert outcomes(decoders, [GOOD, GOOD]) == ["ok", "ok"]
        assert decoders.processes[0].process is running


def test_a_mistake_in_the_work_is_an_error_and_no_refusal() -> None:
    with (
        Decoders(ImageSettings(), by_order, count=1) as decoders,
        pytest.raises(HdmError, match="ZeroDivisionError"),
    ):
        decoders.ask("a", b"mistake")


def test_processes_that_cannot_start_are_an_error_and_no_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        Decoders(ImageSettings(), pixels, count=1) as decoders,
        pytest.raises(HdmError, match="can be started"),
    ):
        decoders.ask("a", GOOD)


def test_what_loading_raises_is_the_answer_of_that_file_alone() -> None:
    def missing() -> bytes:
        raise FileNotFoundError("gone")

    with Decoders(ImageSettings(), pixels, count=2) as decoders:
        loads: list[Callable[[], bytes]] = [partial(bytes, GOOD), missing, partial(bytes, GOOD)]
        answers = list(decoders.map(Asked("x", load) for load in loads))
    assert [type(answer.exception()) for answer in answers] == [
        type(None),
        FileNotFoundError,
        type(None),
    ]


@pytest.mark.parametrize("limit_mb", [1, 3, 20])
def test_pictures_under_way_take_no_more_memory_than_allowed(limit_mb: int) -> None:
    """Counted as the stages count it; one that alone is over the limit is still decoded, by
    itself.
    """
    lock, under_way, most = threading.Lock(), [0, 0], []
    cost = picture_cost(300, 200, 0)

    def loaded(cost: int) -> bytes:
        with lock:
            under_way[0] += 1
            under_way[1] += cost
            most.append(tuple(under_way))
        return GOOD

    with Decoders(ImageSettings(decode_mb=limit_mb), pixels, count=2) as decoders:
        asked = (Asked("x", partial(loaded, cost), cost) for _ in range(30))
        for answer in decoders.map(asked):
            answer.result()
            with lock:
                under_way[0] -= 1
                under_way[1] -= cost
    assert all(total <= limit_mb * 1e6 or count == 1 for count, total in most)


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_no_more_pictures_are_under_way_or_waiting_than_asked_for(ahead: int) -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def loaded() -> bytes:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        return GOOD

    with Decoders(ImageSettings(), header, count=2) as decoders:
        for _ in decoders.map((Asked("x", loaded) for _ in range(12)), ahead):
            with lock:
                under_way -= 1
    assert most <= ahead


def test_leaving_does_not_wait_for_a_picture_under_way() -> None:
    with Decoders(ImageSettings(), by_order, count=1) as decoders:
        assert outcomes(decoders, [GOOD]) == ["ok"]
        decoders.submit(Asked("x", partial(bytes, b"sleep")))
        process = decoders.processes[0].process
    assert process
    assert process.poll() == -signal.SIGKILL


PARENT = """
import sys, time
from functools import partial
from hdm.pictures.settings import ImageSettings
from hdm.pictures.decoding import Asked, Decoders
from tests.pictures.test_decoding import GOOD, by_order
with Decoders(ImageSettings(), by_order, count=2) as decoders:
    for answer in [decoders.submit(Asked("x", partial(bytes, GOOD))) for _ in range(20)]:
        answer.result()
    orders = sys.argv[1:]
    for order in orders:
        decoders.submit(Asked("x", partial(bytes, order.encode())))
    time.sleep(0.5)
    print(*(one.process.pid for one in decoders.processes if one.process), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("orders", [[], ["sleep", "compute"]])
def test_no_process_outlives_the_one_that_started_it(orders: list[str]) -> None:
    """Idle, or in the middle of a picture."""
    program = [sys.executable, "-c", PARENT, *orders]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers
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


# Real files over the limits.


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded() -> None:
    whole = encoded(photograph(640, 480), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    ordinary, many = whole[:-2] + 20 * last + whole[-2:], whole[:-2] + 2000 * last + whole[-2:]
    settings = ImageSettings()
    assert refused(ordinary, settings) is None
    assert refused(many, settings) == "too_many_scans"
    assert refused(many, ImageSettings(max_scans=2100)) is None
    # A marker in a comment or after the end is no scan.
    comment = b"\xff\xfe" + (2 + 2 * 3000).to_bytes(2, "big") + b"\xff\xda" * 3000
    assert refused(whole[:2] + comment + whole[2:], settings) is None
    assert refused(whole + b"\xff\xda" * 3000, settings) is None


def test_more_frames_than_are_taken_are_refused() -> None:
    for name in ("PNG", "WEBP", "AVIF"):
        frames = [photograph(), photograph().rotate(180), photograph().rotate(90)]
        data = encoded(frames[0], name, save_all=True, append_images=frames[1:])
        assert refused(data, ImageSettings(max_frames=2)) == "too_many_frames", name
        assert refused(data, ImageSettings(max_frames=3)) is None


def test_a_small_file_of_huge_pixels_is_within_the_memory_that_is_set_or_refused() -> None:
    """17 KB of PNG that are 12,000 × 11,999 pixels."""
    side = 11_999
    rows = zlib.compressobj(9)
    data = b"".join([*(rows.compress(bytes(1 + 1500)) for _ in range(side)), rows.flush()])
    bomb = png(12_000, side, 1, 0, zlib.decompress(data))
    with Decoders(ImageSettings(max_memory_mb=512), pixels, count=1) as decoders:
        assert outcomes(decoders, [GOOD, bomb, GOOD]) == ["ok", "too_much_memory", "ok"]


def test_an_animation_broken_behind_its_first_frame_is_a_refusal() -> None:
    """Its reader raises when it is asked whether there is a second frame."""
    frames = [photograph(), photograph().rotate(180)]
    whole = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for place in range(len(whole)):
        for value in (0, 0x2C, 0x21, 0xFF):
            data = whole[:place] + bytes([value]) + whole[place + 1 :]
            assert refused(data, ImageSettings()) in (None, "corrupt", "not_image", "too_large")


def refused(data: bytes, settings: ImageSettings) -> str | None:
    try:
        decode(data, settings)
    except BadImage as refusal:
        return refusal.status
    return None
