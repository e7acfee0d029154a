"""Run items one after the other in a process of their own, each within its time.

An item that raises, hangs, or takes its process with it costs itself alone: the next gets a new
process. A process that is well is kept, since importing torch takes seconds.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from hdm.bench.asked import Asked, Item
from hdm.planning.measured_file import Row

START_SEC = 300.0  # a new process's imports, which no item is charged for
END_SEC = 5.0
READY = "ready"
DONE = "done"


@dataclass
class Workshop:
    """The process in which items run.

    Args:
        asked: how to measure.
    """

    asked: Asked
    _process: BaseProcess | None = field(default=None, init=False)
    _pipe: Connection | None = field(default=None, init=False)

    def rows(self, item: Item, seconds: float) -> Iterator[Row]:
        """The rows of an item as they come; the last says why, if it did not end by itself."""
        pipe = self._running()
        pipe.send(item)
        until = time.monotonic() + seconds
        try:
            while pipe.poll(max(0.0, until - time.monotonic())):
                found = pipe.recv()
                if found == DONE:
                    return
                yield found
        except EOFError:
            code = self._end()
            yield missing(item, f"its process ended with {code}", ok=False)
            return
        self._end()
        yield missing(item, f"stopped after {seconds:.0f} s, its time", ok=None)

    def _running(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        # A CUDA context does not survive a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.asked), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = ours
        # An end before that shows in the first item's row.
        with suppress(EOFError):
            if ours.poll(START_SEC):
                ours.recv()
        return ours

    def _end(self) -> int | None:
        """End the process; its exit code."""
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is None:
            return None
        process.join(0.1)
        if process.is_alive():
            process.kill()
        process.join(END_SEC)
        return process.exitcode

    def close(self) -> None:
        """End the process, if there is one."""
        self._end()


def missing(item: Item, why: str, *, ok: bool | None) -> Row:
    """The row of an item that gave none, or not all."""
    return Row(item.name, item.group, "", ok=ok, note=why)


def run_items(items: Sequence[Item], asked: Asked, seconds: float) -> Iterator[tuple[Item, Row]]:
    """Each item's rows, in order, within so many seconds in all."""
    workshop = Workshop(asked)
    until = time.monotonic() + seconds
    try:
        for item in items:
            left = until - time.monotonic()
            if left <= 0:
                yield item, missing(item, "no time was left: raise --minutes", ok=None)
                continue
            for row in workshop.rows(item, min(item.seconds, left)):
                yield item, row
    finally:
        workshop.close()


def _serve(pipe: Connection, asked: Asked) -> None:
    """Run the items that come through the pipe, until it is closed."""
    # torch is imported before the first item's time begins.
    from hdm.bench.device_state import fresh

    pipe.send(READY)
    while True:
        try:
            item: Item = pipe.recv()
        except EOFError:
            return
        try:
            fresh(asked.device)
            for row in item.measure(asked):
                pipe.send(row)
        # Whatever an item meets, even a card out of memory, is a result of the bench.
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            lines = str(error).strip().splitlines()
            why = f"{type(error).__name__}: {lines[0] if lines else 'nothing was said'}"
            pipe.send(missing(item, why, ok=False))
        pipe.send(DONE)
