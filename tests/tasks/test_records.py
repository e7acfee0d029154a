"""How an end is told to Prefect."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.exceptions import CancelledRun, TerminationSignal

from hdm.errors import DamagedError, SavedOnSignal
from tasks.records import StageRecord, settled


def record(name: str, cached: bool) -> StageRecord:
    return StageRecord(name, "0" * 16, "/store", {}, 1.0, cached)


def ending(error: BaseException) -> Any:
    @settled
    def body() -> None:
        raise error

    return body()


def test_up_to_date_only_if_all_of_it_is() -> None:
    old, new = record("filter", True), record("encode.64px", False)
    assert settled(lambda: old)().name == "UpToDate"
    assert settled(lambda: [old, old])().name == "UpToDate"  # type: ignore[attr-defined]
    assert settled(lambda: [old, new])() == [old, new]
    assert settled(lambda: new)() == new
    assert settled(lambda: [])() == []


@pytest.mark.parametrize(
    "stop",
    [SavedOnSignal("saved"), TerminationSignal(15), KeyboardInterrupt(), CancelledRun("saved")],
)
def test_a_stop_is_a_cancelled_run(stop: BaseException) -> None:
    assert ending(stop).is_cancelled()
    assert "saved" in ending(stop).message or "run the same again" in ending(stop).message


def test_a_known_error_keeps_its_words_and_an_unknown_one_its_traceback() -> None:
    damage = DamagedError("a file is not what was written", where="x.tar", do="run again")
    assert ending(damage).is_failed()
    assert ending(damage).message == str(damage)
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError())
