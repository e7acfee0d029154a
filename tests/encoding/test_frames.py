"""Framing: the full frame at few shapes, and files of bounded size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdm.encoding.frames import Framing, plan_bands, plan_files, reading_order


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    steps=st.integers(1, 16),
    multiple=st.sampled_from([4, 8, 16, 64]),
    max_aspect=st.floats(1, 4),
)
def test_the_frame_is_the_whole_picture_up_to_the_aspect_limit(
    width: int, height: int, steps: int, multiple: int, max_aspect: float
) -> None:
    framing = Framing(steps * multiple, multiple, max_aspect)
    framed_width, framed_height = (
        int(size[0]) for size in framing.sizes(np.array([width]), np.array([height]))
    )
    left, top, right, bottom = framing.cut(width, height)

    assert min(framed_width, framed_height) == framing.resolution
    assert framed_width % multiple == framed_height % multiple == 0
    assert (framed_width >= framed_height) == (width >= height) or framed_width == framed_height
    assert (
        max(framed_width, framed_height)
        <= max(framing.resolution * max_aspect, framing.resolution) + 1e-3
    )

    # The cut lies about the middle, keeps the shorter side, and has the picture's aspect up to the
    # limit.
    assert left + right == pytest.approx(width)
    assert top + bottom == pytest.approx(height)
    assert min(right - left, bottom - top) == pytest.approx(min(width, height))
    aspect = max(width, height) / min(width, height)
    assert max(right - left, bottom - top) / min(width, height) == pytest.approx(
        min(aspect, max_aspect)
    )

    # Nothing is cropped to reach a multiple: the longer side is the nearest one (at the limit the
    # one below).
    exact = framing.resolution * min(aspect, max_aspect)
    assert abs(max(framed_width, framed_height) - exact) <= multiple / 2 * (
        1 if aspect < max_aspect - multiple / framing.resolution else 2
    )


def test_files_hold_one_shape_in_order_and_a_bounded_number_of_bytes() -> None:
    rng = np.random.default_rng(0)
    widths, heights = rng.choice([64, 96, 128], (2, 500))
    plan = list(plan_files(widths, heights, bytes_a_pixel=0.125, max_bytes=20_000))
    assert sorted(np.concatenate([file.rows for file in plan])) == list(range(500))
    for file in plan:
        assert set(widths[file.rows]) == {file.width}
        assert set(heights[file.rows]) == {file.height}
        assert len(file.rows) * file.width * file.height * 0.125 <= 20_000
        assert (np.diff(file.rows) > 0).all()
    numbers = [(file.height, file.width, file.number) for file in plan]
    assert len(set(numbers)) == len(numbers)
    [tiny] = plan_files(np.array([4096]), np.array([4096]), 1, 10)
    assert len(tiny.rows) == 1


def test_bands_hold_every_file_once_and_most_pictures_are_in_one_band() -> None:
    rng = np.random.default_rng(1)
    widths, heights = rng.integers(300, 900, (2, 3000))
    framings = [Framing(side, 16, 2.0) for side in (64, 128, 256)]
    plans = [
        list(plan_files(*framing.sizes(widths, heights), bytes_a_pixel=0.125, max_bytes=60_000))
        for framing in framings
    ]
    found = plan_bands(plans, len(widths))
    assert sorted(
        (plan, file.height, file.width, file.number) for band in found for plan, file in band
    ) == sorted(
        (plan, file.height, file.width, file.number)
        for plan, files in enumerate(plans)
        for file in files
    )
    readings = 0
    for band in found:
        wanted = list(reading_order([file for _, file in band]))
        readings += len(wanted)
        assert [row for row, _ in wanted] == sorted(
            {int(row) for _, file in band for row in file.rows}
        )
        for row, places in wanted:
            assert [place for place, (_, file) in enumerate(band) if row in file.rows] == places
        # One file of a shape after the other: each is whole before the next begins.
        for plan, shape in {(plan, (file.height, file.width)) for plan, file in band}:
            rows = np.concatenate(
                [
                    file.rows
                    for other, file in band
                    if other == plan and (file.height, file.width) == shape
                ]
            )
            assert (np.diff(rows) > 0).all()
    assert readings < 1.5 * len(widths)  # three times without bands
    assert [[file for _, file in band] for band in plan_bands(plans[:1], len(widths))] == [
        [file for file in plans[0] if (file.height, file.width) == shape]
        for shape in dict.fromkeys((file.height, file.width) for file in plans[0])
    ]
    assert list(reading_order([])) == []
