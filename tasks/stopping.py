"""Stop on SIGTERM and Ctrl-C at any point of a stage."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

AGAIN_SEC = 2.0
STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Make both signals raise KeyboardInterrupt in the block, repeatedly until the block is left.

    Once is not enough: an exception raised by a signal within a destructor or a callback of the
    event loop is swallowed there. It is KeyboardInterrupt because asyncio lets that one through.
    Training installs its own handlers for its duration.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SEC, AGAIN_SEC)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (*STOPPING, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
