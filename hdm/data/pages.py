"""Parquet columns of bytes as views of a memory map, each row group checked on its first touch in a
process.

If a column is not nullable, PLAIN, uncompressed and has one page per row group, the file contains
its values one after the other: fixed_size_binary as they are, binary each after its length in 4
bytes (little endian). Its bytes can then be used in place. The page header, in Thrift's compact
protocol, shows whether this holds: if its number of values is not the row group's, a second header
follows, and every row behind it would be silently shifted. pyarrow reads columns with another
layout, more slowly.

Format: https://github.com/apache/parquet-format (PageHeader in parquet.thrift; checksums are CRC-32
of the page's bytes).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hdm.errors import DamagedError
from hdm.files import canonical_json

METADATA = b"hdm"
# The footer has no checksum of its own in Parquet.
METADATA_CRC = b"hdm_crc32"
MAX_GROUP_BYTES = 64 << 20
MIN_GROUPS = 8
MAX_PAGE_ROWS = 20_000  # pyarrow starts a new page there, whatever the page size
# Headers take 25 to 27 bytes, and a few more with a checksum.
MAX_HEADER_BYTES = 256
DATA_PAGE, PLAIN = 0, 0  # PageType and Encoding of parquet.thrift

log = logging.getLogger(__name__)


def group_rows(num_rows: int, row_bytes: int) -> int:
    """The number of rows in a row group: at most 64 MB and one page, with at least 8 groups in a
    file that has enough rows.
    """
    return max(1, min(num_rows // MIN_GROUPS, MAX_GROUP_BYTES // max(row_bytes, 1), MAX_PAGE_ROWS))


@contextlib.contextmanager
def paged_writer(
    path: Path, schema: pa.Schema, metadata: Mapping[str, Any]
) -> Iterator[pq.ParquetWriter]:
    """A writer of Parquet files whose byte columns can be read as views; every `write_table` makes
    one row group.

    Args:
        path: the file to write.
        schema: columns; those to be read as views must not be nullable.
        metadata: JSON values for the file's footer, stored with their checksum; `read_metadata`
            returns them.
    """
    text = canonical_json(dict(metadata))
    # Plain, uncompressed values can be used in place. Compression would save 8 to 15 % of latents'
    # bytes, and take 3 to 30 times as long to read. A page is as large as its row group, since a
    # second header would shift the rows behind it. Without page checksums, 59 of 60 flipped bits
    # went unnoticed.
    with pq.ParquetWriter(
        path,
        schema,
        compression="NONE",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
        data_page_size=1 << 30,
        write_page_checksum=True,
    ) as writer:
        yield writer
        writer.add_key_value_metadata(
            {METADATA: text, METADATA_CRC: f"{zlib.crc32(text):08x}".encode()}
        )


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn any error of pyarrow or of our own parsing on a broken file into a DamagedError that
    names the file.

    A file that is missing or may not be opened is not damaged, so that error passes unchanged.
    """
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, OverflowError) as error:
        # pyarrow raises OSError without an errno for files that do not parse; EIO is an unreadable
        # block.
        if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
            raise
        raise DamagedError(
            f"a shard is damaged: {error}",
            where=path,
            do="run the same command again: it is made anew",
        ) from error


def open_file(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    """Open a file with page checksums on, and check what no checksum covers: its columns, and that
    its pages follow each other without gaps.

    Args:
        path: the file.
        schema: columns that it must have; a fixed_size_binary stands for one of any width.

    Raises:
        DamagedError: its footer is not one of a whole file with these columns.
    """
    with damage_named(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        for field in schema:
            written = file.schema_arrow.field(field.name)
            if written.type != field.type and not (
                pa.types.is_fixed_size_binary(written.type)
                and pa.types.is_fixed_size_binary(field.type)
            ):
                raise ValueError(f"column {field.name} is {written.type}, not {field.type}")
        _check_tiling(file.metadata)
        return file


def _check_tiling(metadata: pq.FileMetaData) -> None:
    """Check that the column chunks follow each other from byte 4 on: a damaged offset would point
    to another chunk's valid pages.
    """
    # The first chunk follows the magic number, PAR1.
    expected, num_rows = 4, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        num_rows += group.num_rows
        for column in range(metadata.num_columns):
            chunk = group.column(column)
            start = (
                chunk.dictionary_page_offset
                if chunk.has_dictionary_page
                else chunk.data_page_offset
            )
            if start != expected:
                raise ValueError(f"row group {number} does not start where the one before it ends")
            expected += chunk.total_compressed_size
    if num_rows != metadata.num_rows:
        raise ValueError(f"it has {num_rows} rows where {metadata.num_rows} are promised")


def read_metadata(file: pq.ParquetFile) -> dict[str, Any]:
    """The metadata that `paged_writer` stored in the footer.

    Raises:
        ValueError: there is none, or it is not what was written.
    """
    metadata = file.metadata.metadata or {}
    if (
        METADATA not in metadata
        or metadata.get(METADATA_CRC) != f"{zlib.crc32(metadata[METADATA]):08x}".encode()
    ):
        raise ValueError("its footer's metadata is not what was written")
    stored: dict[str, Any] = json.loads(metadata[METADATA])
    return stored


class PagedColumn:
    """One byte column of a Parquet file, with its row groups in place in the file.

    Args:
        file: the open file; it may be closed afterwards.
        path: the file's path.
        column: the column's name.

    Attributes:
        firsts: first row of each row group, and the number of rows at the end; (num_groups + 1,)
            int64.
    """

    def __init__(self, file: pq.ParquetFile, path: Path, column: str) -> None:
        self.path = path
        self.column = column
        metadata = file.metadata
        place = file.schema_arrow.get_field_index(column)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self.firsts = np.cumsum([0, *(group.num_rows for group in groups)], dtype=np.int64)
        self._chunks = [_Chunk(group.column(place)) for group in groups]
        self._payloads: list[np.ndarray | None] = [None] * len(groups)
        # The buffer keeps the map alive, and no file stays open.
        with pa.memory_map(str(path)) as mapped:
            self._bytes = np.frombuffer(mapped.read_buffer(), np.uint8)

    def payload(self, group: int) -> np.ndarray:
        """The values of a row group as PLAIN bytes, (num_bytes,) uint8, read-only; checked the
        first time.

        Raises:
            DamagedError: they are not what was written.
        """
        ready = self._payloads[group]
        if ready is None:
            with damage_named(self.path):
                ready = self._checked(group)
            self._payloads[group] = ready
        return ready

    def _checked(self, group: int) -> np.ndarray:
        chunk = self._chunks[group]
        page = chunk.find_page(self._bytes, int(self.firsts[group + 1] - self.firsts[group]))
        if page is None:
            log.warning(
                "%s: row group %d is not one plain page; read through pyarrow, which is slower",
                self.path,
                group,
            )
            return self._read_through_pyarrow(group)
        start, crc = page
        payload = self._bytes[start : chunk.end]
        # pyarrow checks the pages that it decodes; these bytes do not pass through it.
        if zlib.crc32(payload.data) != crc:
            raise ValueError(
                f"the checksum of row group {group} of column {self.column} does not hold"
            )
        return payload

    def _read_through_pyarrow(self, group: int) -> np.ndarray:
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            values = file.read_row_group(group, columns=[self.column]).column(0)
        if len(values) != self.firsts[group + 1] - self.firsts[group] or values.null_count:
            raise ValueError(f"row group {group} of column {self.column} lacks values")
        parts: list[bytes] = []
        if pa.types.is_fixed_size_binary(values.type):
            parts += values.to_pylist()
        else:
            # As a PLAIN page has them: each value after its length.
            for value in values.cast(pa.binary()).to_pylist():
                parts += [len(value).to_bytes(4, "little"), value]
        return np.frombuffer(b"".join(parts), np.uint8)


class _Chunk:
    """The location of a column chunk, according to the footer."""

    def __init__(self, chunk: pq.ColumnChunkMetaData) -> None:
        self.plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
        self.start = chunk.data_page_offset
        self.end = self.start + chunk.total_compressed_size

    def find_page(self, data: np.ndarray, num_rows: int) -> tuple[int, int] | None:
        """The start of the values and their CRC-32, if the chunk is one plain page of `num_rows`
        values; else None.
        """
        if not self.plain:
            return None
        try:
            header, length = read_page_header(
                data[self.start : min(self.end, self.start + MAX_HEADER_BYTES)].tobytes()
            )
            # PageHeader: 1 type, 2 uncompressed and 3 compressed size, 4 CRC, 5 DataPageHeader, of
            # which 1 is the number of values and 2 their encoding.
            page = header[5]
            num_bytes = self.end - self.start - length
            whole = header[1] == DATA_PAGE and header[2] == header[3] == num_bytes
            if whole and page[1] == num_rows and page[2] == PLAIN:
                # Thrift's i32 is signed, and zlib's CRC is not.
                return self.start + length, header[4] & 0xFFFFFFFF
        except (LookupError, TypeError, ValueError):
            pass
        return None


def read_page_header(data: bytes) -> tuple[dict[int, Any], int]:
    """Parse a page header.

    Args:
        data: bytes that begin with a header.

    Returns:
        field number of PageHeader in parquet.thrift → value (a struct is such a mapping again), and
        the header's length in bytes.

    Raises:
        LookupError, ValueError: there is none.
    """
    reader = _Compact(data)
    return reader.struct(), reader.at


class _Compact:
    """Thrift's compact protocol, as far as page headers use it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.byte()) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def integer(self) -> int:
        # Small numbers of either sign take few bytes: 0, -1, 1, -2 are stored as 0, 1, 2, 3.
        zigzag = self.varint()
        return (zigzag >> 1) ^ -(zigzag & 1)

    def struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            # The upper four bits hold the distance from the previous field; 0 means that the number
            # follows.
            number = number + (head >> 4) if head >> 4 else self.integer()
            fields[number] = self.value(head & 15)
        return fields

    def value(self, kind: int) -> Any:
        # The compact protocol's types: 1 true, 2 false, 4 to 6 integers, 8 binary, 12 struct.
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self.integer()
        if kind == 8:
            length = self.varint()
            self.at += length
            return self.data[self.at - length : self.at]
        if kind == 12:
            return self.struct()
        raise ValueError(f"no page header holds a value of kind {kind}")
