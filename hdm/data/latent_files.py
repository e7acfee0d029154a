"""Latent shards: Parquet files of one latent shape each, read as views of a memory map.

`latents-<h>x<w>-<n>.parquet` holds pictures whose latents are h × w; columns below, one row a
picture; the footer says what made them (`LatentFormat`). Any Parquet reader opens them;
`LatentFile` reads them at the speed of a memory copy. Layout: `hdm.data.pages`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hdm.data.pages import (
    PagedColumn,
    damage_named,
    group_rows,
    open_file,
    paged_writer,
    read_metadata,
)
from hdm.keys import DIGITS, FIELD, Key, key_numbers
from hdm.store import Output

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LatentFormat:
    """The format of a latent shard.

    Args:
        channels: of the autoencoder.
        height: of every latent of the file.
        width: likewise.
        dtype: of the raw latents, "float16" or "bfloat16".
        resolution: shorter side of the encoded pictures, in pixels.
        downscale: pixels a latent position, on each axis.
        autoencoder: its class, weights digest, and per-channel scale and shift: latent = (raw
            latent - shift) · scale.
    """

    channels: int
    height: int
    width: int
    dtype: str
    resolution: int
    downscale: int
    autoencoder: Mapping[str, Any]

    @property
    def row_bytes(self) -> int:
        return self.channels * self.height * self.width * DTYPES[self.dtype].itemsize


def latent_file_name(height: int, width: int, number: int, kind: str = "latents") -> str:
    """8, 16, 3 → `latents-8x16-00003.parquet`."""
    return f"{kind}-{height}x{width}-{number:05d}.parquet"


def latent_schema(row_bytes: int) -> pa.Schema:
    """The columns of a latent shard."""
    return pa.schema(
        [
            FIELD,
            # Of the picture before it was cut and resized, in pixels.
            pa.field("image_width", pa.int32(), nullable=False),
            pa.field("image_height", pa.int32(), nullable=False),
            # Raw latent (C, h, w), little endian.
            # Values of fixed width that cannot be null lie one after the other in the file. Readers
            # of nullable or variable-width columns reach less than half of a memory copy's speed.
            pa.field("latent", pa.binary(row_bytes), nullable=False),
        ]
    )


class LatentWriter:
    """Writes one latent shard, one row group at a time.

    Args:
        path: the file.
        form: what it holds.
        num_rows: expected number of rows, which sets the size of row groups; fewer may follow.
    """

    def __init__(self, path: Path, form: LatentFormat, num_rows: int) -> None:
        self.path = path
        self.form = form
        self._schema = latent_schema(form.row_bytes)
        self._group_rows = group_rows(num_rows, form.row_bytes)
        self._keys: list[Key] = []
        self._sizes: list[tuple[int, int]] = []
        self._rows: list[np.ndarray] = []
        self._stack = ExitStack()

    def __enter__(self) -> LatentWriter:
        self._writer = self._stack.enter_context(
            paged_writer(self.path, self._schema, asdict(self.form))
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error the caller discards the file, so the rest need not be written.
        if kind is None:
            self._flush(len(self._keys))
        self._stack.__exit__(kind, error, trace)

    def add(
        self, keys: Sequence[Key], latent: torch.Tensor, sizes: Sequence[tuple[int, int]]
    ) -> None:
        """Append pictures.

        Args:
            keys: of n pictures.
            latent: their raw latents (n, C, h, w), of any float dtype; cast to the shard's.
            sizes: their widths and heights as pictures, in pixels.
        """
        # The writer takes bytes, since numpy has no bfloat16.
        stored = (
            latent.to(DTYPES[self.form.dtype])
            .cpu()
            .contiguous()
            .flatten(1)
            .view(torch.uint8)
            .numpy()
        )
        self._keys += keys
        self._sizes += sizes
        self._rows += list(stored)
        while len(self._keys) >= self._group_rows:
            self._flush(self._group_rows)

    def _flush(self, count: int) -> None:
        if not count:
            return
        # The rows go in as one buffer, without a Python object for each.
        latents = pa.FixedSizeBinaryArray.from_buffers(
            self._schema.field("latent").type,
            count,
            [None, pa.py_buffer(np.concatenate(self._rows[:count]))],
        )
        widths, heights = zip(*self._sizes[:count], strict=True)
        columns = [
            pa.array(self._keys[:count]),
            pa.array(widths, pa.int32()),
            pa.array(heights, pa.int32()),
            latents,
        ]
        self._writer.write_table(pa.table(columns, schema=self._schema), row_group_size=count)
        del self._keys[:count], self._sizes[:count], self._rows[:count]


class LatentFile:
    """Reads one latent shard.

    Args:
        path: the file.

    Attributes:
        form: what it holds.
        column: its latents, in place in the file.
        firsts: first row of each row group, and the number of rows at the end; (num_groups + 1,)
            int64.

    Raises:
        DamagedError: it is not what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with damage_named(path), open_file(path, latent_schema(1)) as file:
            self.form = LatentFormat(**read_metadata(file))
            # Rows are cut by the footer's sizes, so another width would shift all of them.
            if file.schema_arrow.field("latent").type.byte_width != self.form.row_bytes:
                raise ValueError("its latents have another size than its footer says")
            self.column = PagedColumn(file, path, "latent")
            # Single keys are read in place, for messages; all of them only where tables are joined.
            self._keys = PagedColumn(file, path, "key")
        self.firsts = self.column.firsts

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def keys(self) -> np.ndarray:
        """Keys of its rows as numbers, read and checked on every access: (num_rows,) uint64."""
        with damage_named(self.path):
            return key_numbers(self.table(["key"]).column("key"))

    def key(self, row: int) -> Key:
        """The key of a row, read in place: its digits follow 4 bytes of length."""
        group = self._group(row)
        place = (4 + DIGITS) * (row - int(self.firsts[group]))
        digits = self._keys.payload(group)[place + 4 :][:DIGITS]
        return Key(digits.tobytes().decode())

    def group(self, group: int) -> np.ndarray:
        """The raw latents of a row group, in place, as bytes: (n, C, h, w · itemsize) uint8,
        read-only.

        Raises:
            DamagedError: the row group, touched for the first time, is not what was written.
        """
        form = self.form
        return self.column.payload(group).reshape(
            -1, form.channels, form.height, form.width * DTYPES[form.dtype].itemsize
        )

    def groups(self) -> Iterator[np.ndarray]:
        """Every row group in order, as from `group`."""
        return map(self.group, range(len(self.firsts) - 1))

    def latents(self, rows: Sequence[int]) -> torch.Tensor:
        """A copy of some rows' raw latents: (n, C, h, w) in the shard's dtype."""
        form = self.form
        latents = torch.empty(
            (len(rows), form.channels, form.height, form.width), dtype=DTYPES[form.dtype]
        )
        # Rows are copied as bytes, since numpy has no bfloat16.
        for into, row in zip(latents.view(torch.uint8).numpy(), rows, strict=True):
            group = self._group(row)
            into[:] = self.group(group)[row - int(self.firsts[group])]
        return latents

    def _group(self, row: int) -> int:
        return int(self.firsts.searchsorted(row, side="right")) - 1

    def table(self, columns: Sequence[str] = ("key", "image_width", "image_height")) -> pa.Table:
        """Other columns, read and checked by pyarrow."""
        with damage_named(self.path), open_file(self.path, latent_schema(1)) as file:
            return file.read(columns=list(columns))


def open_latents(output: Output) -> list[LatentFile]:
    """The latent shards of an `encode.<resolution>px` output, in order of name."""
    return [LatentFile(path) for path in output.paths(".parquet")]
