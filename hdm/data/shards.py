"""Tar shards of original picture files: writing them, and reading single pictures by position."""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

from hdm.closing import Closing
from hdm.data.tables import shard_name
from hdm.errors import DamagedError, HdmError
from hdm.pictures.reading import BadImage
from hdm.store import Output

EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "HEIF": "heic",
    "JPEG2000": "jp2",
}

MAX_OPEN = 64
"""Number of tars that a reader keeps open."""


class TarShard(Closing):
    """A WebDataset tar being written: the same members give the same bytes. Use it in a `with`
    block.

    Args:
        path: of the tar.
    """

    def __init__(self, path: Path) -> None:
        # USTAR writes one header block for each member, on which the offset in `add` relies.
        # Closed in `close`.
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, key: str, format_name: str, data: bytes) -> int:
        """Append one picture; returns the offset of its first byte."""
        # Owner, group and time are 0 or empty.
        member = tarfile.TarInfo(f"{key}.{EXTENSIONS[format_name]}")
        member.size = len(data)
        member.mode = 0o644
        end = self._tar.offset
        self._tar.addfile(member, BytesIO(data))
        return end + tarfile.BLOCKSIZE

    def close(self) -> None:
        self._tar.close()


class _OpenFile:
    """A file descriptor that closes when the last thread reading from it releases it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ImageReader(Closing):
    """Reads original picture files of a finished download, from any thread. Use it in a `with`
    block, or `close` it.

    Args:
        download: the download stage's output.
    """

    def __init__(self, download: Output) -> None:
        self.download = download
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._opening = threading.Lock()

    def read(
        self, shard: int, offset: int | None, num_bytes: int | None, sha256: str | None
    ) -> bytes:
        """The bytes of one picture.

        Args:
            shard: number of the tar.
            offset: of its first byte in the tar, from the samples table.
            num_bytes: its length, likewise.
            sha256: the first hexadecimal digits of its hash, likewise.

        Raises:
            BadImage: the samples table has no place of it. A shard that was damaged is downloaded
                again, and by then a picture that other outputs know may be gone.
            DamagedError: the tar is missing or shorter than it was, or the bytes are not what was
                downloaded.
            HdmError: the tar cannot be read.
        """
        if offset is None or num_bytes is None or sha256 is None:
            raise BadImage(
                "not_downloaded",
                "it was gone when its shard, which was damaged, was downloaded again",
            )
        file = self._open(shard)
        parts: list[bytes] = []
        missing = num_bytes
        while missing > 0:  # one call reads at most 2 GiB
            try:
                # pread leaves the file position alone, which threads would share.
                part = os.pread(file.descriptor, missing, offset + num_bytes - missing)
            except OSError as error:
                raise HdmError(
                    f"a tar of pictures cannot be read: {error}", where=self._path(shard)
                ) from error
            if not part:
                raise self._damage(shard, "a tar of pictures is shorter than it was")
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        # Looking an output up compares large ones only in part, so each picture is checked when it
        # is read.
        if not hashlib.sha256(data).hexdigest().startswith(sha256):
            raise self._damage(
                shard, f"the picture at byte {offset} of a tar is not what was downloaded"
            )
        return data

    def close(self) -> None:
        """Close the files."""
        with self._opening:
            self._files.clear()

    def _open(self, shard: int) -> _OpenFile:
        with self._opening:
            if shard not in self._files:
                try:
                    self._files[shard] = _OpenFile(self._path(shard))
                except FileNotFoundError as error:
                    raise self._damage(shard, "a tar of pictures is missing") from error
                # The least recently used tar goes. A thread that still reads from it holds its
                # descriptor open.
                if len(self._files) > MAX_OPEN:
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
            return self._files[shard]

    def _path(self, shard: int) -> Path:
        return self.download.path / shard_name("images", shard, "tar")

    def _damage(self, shard: int, what: str) -> DamagedError:
        return DamagedError(
            what, where=self._path(shard), do="run the same command again: it is made anew"
        )
