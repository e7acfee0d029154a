"""How a training process dies: with the flow that started it, or after saving when it is asked to
stop.

Light on purpose: this stands before the seconds of torch's import.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ORPHANED = 3  # exit code


def end_with_parent() -> None:
    """End this process, at once, when its standard input closes.

    The flow's process holds the other end of that pipe and writes nothing to it, so it closes when
    that process dies, however it dies. torchrun passes its standard input on to the ranks, which it
    puts into sessions of their own.
    """
    threading.Thread(target=_watch, name="end-with-parent", daemon=True).start()


def _watch() -> None:
    with contextlib.suppress(OSError):
        # The read blocks until the other end closes, which the kernel does however that process
        # dies.
        while os.read(0, 1):
            pass
    # sys.exit would only end this thread.
    os._exit(ORPHANED)


class Stopped(BaseException):
    """SIGTERM or SIGINT came when there was nothing to save: before the first step, or after the
    last checkpoint.

    No `Exception`: libraries swallow those while they are imported.
    """


class StopRequest:
    """SIGTERM and SIGINT, held back while there is something to save first.

    `saved`: every step done so far is in a checkpoint.
    """

    def __init__(self) -> None:
        self.requested = self.deferred = self.saved = False

    def listen(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        # Until there is something to save, the signal interrupts whatever runs, even an import.
        if not self.deferred:
            raise Stopped

    def defer(self) -> None:
        """From here on, signals only set `requested`; the loop looks at it after each step."""
        self.deferred = True

    def release(self) -> None:
        """From here on, everything is saved: a signal ends the work at once.

        Raises:
            Stopped: one came while it was held back.
        """
        self.deferred = False
        self.saved = True
        if self.requested:
            raise Stopped

    def ignore(self) -> None:
        """From here on nothing is left to stop; the flow's process, which passed the signal on,
        ends the run.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


class Signals:
    """SIGTERM and SIGINT that came since they began to be counted."""

    def __init__(self) -> None:
        self.count = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


@contextlib.contextmanager
def signals_counted() -> Iterator[Signals]:
    """Count the signals instead of dying of them. Outside the main thread they stay with whoever
    handles them.
    """
    signals = Signals()
    with _handled_by(signals.handle):
        yield signals


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """In the block either signal raises `Stopped` at once. Outside the main thread they stay with
    whoever handles them.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    with _handled_by(stop):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # Only Python's main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
