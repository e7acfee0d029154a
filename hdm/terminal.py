"""Standard output and error that may be closed, be cut off by `| head`, or lack characters, without
stopping the work.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

GONE = (errno.EPIPE, errno.EIO)  # nobody reads the pipe; the terminal was closed


class _Unread(io.FileIO):
    """A stream that is silent after a failed write, and raises no error if its reader is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _discard(self.fileno())  # for child processes that share it, too
            if error.errno not in GONE:
                raise
            return memoryview(data).nbytes


def survive_closing() -> None:
    """Make the program survive a standard output or error that is closed before or during the run.

    Streams that were replaced, as tests do, are left alone.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened would be taken for it
            _discard(descriptor)
    if sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = _stream(sys.stdout, 1)  # type: ignore[misc]
    if sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = _stream(sys.stderr, 2)  # type: ignore[misc]


def _discard(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    # The system gave the closed descriptor itself, which Python does not let children inherit.
    if nowhere == descriptor:
        os.set_inheritable(descriptor, True)
        return
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _stream(before: Any, descriptor: int) -> io.TextIOWrapper:
    """A wrapper of the stream that replaces characters missing from its encoding, and survives
    losing its reader.
    """
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Unread(descriptor, "w", closefd=False)),
        encoding=before.encoding if before is not None else "utf-8",
        errors="replace",
        line_buffering=descriptor == 2 or os.isatty(descriptor),
    )
