"""A short run of tests/faults/fuzz_pictures.py, the same at each time."""

from __future__ import annotations

import contextlib

from hdm.pictures.decoding import Decoders
from hdm.pictures.reading import FORMATS, BadImage, inspect
from tests.faults.fuzz_pictures import LIMITS, Fuzzing, examined, made_up

FILES = 1200


def test_broken_files_are_pictures_or_refusals() -> None:
    fuzzing = Fuzzing(1, made_up())
    with Decoders(LIMITS, examined, count=2) as decoders:
        failures = [
            f"{number}: {outcome}"
            for number, _, outcome, failed in fuzzing.run(iter(range(FILES)), decoders)
            if failed
        ]
    assert failures == []
    # The files are neither all as before nor all too broken to be looked into.
    decoded = sum(count for outcome, count in fuzzing.outcomes.items() if ":" not in outcome)
    assert 0.1 * FILES < decoded < 0.9 * FILES
    assert len(fuzzing.outcomes) > 60


def test_the_files_to_begin_with_are_of_every_format() -> None:
    formats = set()
    for data in made_up():
        with contextlib.suppress(BadImage):  # PQ colours are refused by the header
            formats.add(inspect(data, LIMITS).format)
    assert formats == set(FORMATS)
