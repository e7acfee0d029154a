"""Bytes on disk, where they could fill the memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hdm.closing import Closing
from hdm.files import explain_os_error


class Spill(Closing):
    """A temporary file that is appended to and read by position.

    Args:
        folder: where it lies; it has no name there.

    Raises:
        HdmError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Closed in `close`.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._end = 0

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def append(self, data: bytes) -> int:
        """The position at which the bytes are from now on."""
        offset = self._end
        try:
            # An unbuffered write may write only part of the data.
            while data:
                num_written = self._file.write(data)
                self._end += num_written
                data = data[num_written:]
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        return offset

    def read(self, offset: int, num_bytes: int) -> bytes:
        """The bytes at a position; from any thread."""
        return os.pread(self._file.fileno(), num_bytes, offset)
