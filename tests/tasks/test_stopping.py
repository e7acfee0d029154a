"""A signal stops a stage even where Python swallows the first exception."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tasks import stopping
from tasks.stopping import stoppable


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_swallowed_in_a_destructor_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "AGAIN_SEC", 0.1)

    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                pass

    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with stoppable():
            Swallows()
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_nothing_is_left_where_nothing_came() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stoppable():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
