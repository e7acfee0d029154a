"""Captions as token ids or text embeddings, looked up by their picture's key.

Text embeddings are in `text-<n>.parquet`, divided like the captions' tables, with one row per
caption. The empty caption's, for guidance, is in `empty.parquet` under the key "".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from hdm.caption_text.tag_form import plain_caption
from hdm.data.gather import RowGroups, gather
from hdm.data.pages import PagedColumn, damage_named, open_file, read_metadata
from hdm.data.tables import num_shards, read_table, read_tables, shard_name
from hdm.data.text_form import TextForm
from hdm.files import explain_os_error
from hdm.keys import FIELD, Key, key_numbers
from hdm.store import Output

EMPTY_TEXT = "empty.parquet"
LENGTH_STEP = 8

TEXT = pa.schema(
    [
        FIELD,
        pa.field("index", pa.int16(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),  # tokens
        # (length, token bytes), as TextForm packs them.
        pa.field("embedding", pa.binary(), nullable=False),
    ]
)


def padded_length(longest: int) -> int:
    """The padded length for texts of up to this many tokens, so that a model sees few different
    lengths.
    """
    return -(-longest // LENGTH_STEP) * LENGTH_STEP


class CaptionTable(Protocol):
    """Captions as model input; the empty caption is the row after the last."""

    @property
    def keys(self) -> np.ndarray:
        """Keys of the rows' pictures, each picture's captions in the order of their index; read
        from the files each time; (num_rows,) uint64.
        """
        ...

    @property
    def empty(self) -> int:
        """The row of the empty caption."""
        ...

    def at_position(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The rows at positions of the training clock, for captions that vary with the position."""
        ...

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Lengths of some rows in tokens, int32."""
        ...

    def read(self, rows: np.ndarray, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows, truncated and padded to `num_tokens`, at most a padded length, and their mask
        (n, num_tokens) bool, False in padding.
        """
        ...


class RaggedRows:
    """Start offsets of concatenated rows of different lengths; 4 bytes per row while there are
    fewer than 4 · 10⁹ tokens.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        ends = np.cumsum(lengths, dtype=np.int64)
        self.starts = np.concatenate([[0], ends]).astype(
            np.uint32 if ends[-1] < 2**32 else np.int64
        )

    @property
    def empty(self) -> int:
        # `starts` has one entry more than there are rows, and the last row is the empty caption.
        return len(self.starts) - 2

    def at_position(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return rows

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        lengths: np.ndarray = self.starts[rows + 1] - self.starts[rows]
        return lengths.astype(np.int32)


def _padding(lengths: np.ndarray, num_tokens: int) -> np.ndarray:
    """True behind the end of each text of these lengths, (n, num_tokens) bool."""
    return _places(num_tokens) >= lengths[:, None]


@lru_cache(maxsize=64)
def _places(num_tokens: int) -> np.ndarray:
    return np.arange(num_tokens, dtype=np.int32)


class TokenTable(RaggedRows):
    """Token ids of every caption, in an unnamed temporary file.

    Args:
        tokens: the output `encode.tokens`.
    """

    def __init__(self, tokens: Output) -> None:
        self._tokens = tokens
        self.pad_id = int(tokens.summary["pad_id"])
        empty = np.asarray(tokens.summary["empty"], np.int32)
        lengths = []
        # Only one shard's table is in memory at a time.
        with unnamed_file("token ids") as file:
            for number in range(num_shards(tokens, "tokens")):
                column = read_table(
                    tokens.file(shard_name("tokens", number)), ["token_ids"]
                ).column("token_ids")
                lengths.append(pc.list_value_length(column).to_numpy())
                for chunk in column.chunks:
                    file.write(chunk.flatten().to_numpy().data)
            super().__init__(np.concatenate([*lengths, [len(empty)]]))
            self._longest = int(np.diff(self.starts).max())
            # Room for a run of any padded length at every caption, also the last.
            file.write(
                np.concatenate(
                    [empty, np.zeros(padded_length(int(np.diff(self.starts).max())), np.int32)]
                ).data
            )
            file.flush()
            # Its pages are the system's to drop and read again: ten million captions are more than
            # a gigabyte.
            self._token_ids = np.asarray(np.memmap(file, np.int32, "r"))
        # The cache belongs to the instance: one on the method would keep every table alive.
        self._runs = lru_cache(maxsize=64)(self._runs_of)

    @property
    def keys(self) -> np.ndarray:
        return key_numbers(read_tables(self._tokens, "tokens", ["key"]).column("key"))

    def read(self, rows: np.ndarray, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (n, num_tokens) int32, padded with `pad_id`, and their mask (n, num_tokens)
        bool.
        """
        padding = _padding(self.lengths(rows), num_tokens)
        # Runs of equal length, of which the next captions' tokens are left out then: quicker than
        # to copy each caption's own.
        token_ids = self._runs(num_tokens)[self.starts[rows]].view(np.int32).reshape(padding.shape)
        np.copyto(token_ids, self.pad_id, where=padding)
        return torch.from_numpy(token_ids), torch.from_numpy(~padding)

    def _runs_of(self, num_tokens: int) -> np.ndarray:
        """A view with, at each token, the run of that many tokens as one item: numpy copies rows of
        items faster than rows of numbers.
        """
        count = len(self._token_ids) - num_tokens + 1
        return np.ndarray(count, f"V{4 * num_tokens}", self._token_ids.data, strides=(4,))


@contextlib.contextmanager
def unnamed_file(what: str) -> Iterator[IO[bytes]]:
    """A temporary file for some data, named in errors. The system removes it when the process ends,
    even by SIGKILL.
    """
    try:
        with TemporaryFile(prefix="hdm-") as file:
            yield file
    except OSError as error:
        if error.filename is not None:
            raise  # what was read
        raise explain_os_error(error, Path(gettempdir()) / what) from error


class TextTable(RaggedRows):
    """Text embeddings of every caption, read in place from the files.

    Args:
        text: the output `encode.text`.

    Raises:
        DamagedError: a file is not what was written.
    """

    def __init__(self, text: Output) -> None:
        self._paths = [path for path in text.paths(".parquet") if path.name != EMPTY_TEXT]
        # The empty caption's file comes last, where `empty` expects its row.
        files = [_TextFile(path) for path in [*self._paths, text.file(EMPTY_TEXT)]]
        super().__init__(np.concatenate([file.lengths for file in files]))
        self.form = files[-1].form
        self.width = self.form.width
        self._groups = RowGroups(
            [file.column for file in files], np.concatenate([file.payload_bytes for file in files])
        )

    @property
    def keys(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.uint64), *map(_keys, self._paths)])

    def read(self, rows: np.ndarray, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Text embeddings (n, num_tokens, width) float16, padded with zeros, and their mask (n,
        num_tokens) bool.

        Raises:
            DamagedError: a row group, touched for the first time, is not what was written.
        """
        mask = ~_padding(self.lengths(rows), num_tokens)
        token_bytes = self.form.token_bytes
        # Zero bytes unpack to zeros in both forms, so padding needs no second pass.
        stored = np.zeros((*mask.shape, token_bytes), np.uint8)
        tokens = self._addresses(rows)[:, None] + np.arange(num_tokens) * token_bytes
        stored[mask] = gather(tokens[mask], token_bytes)
        return torch.from_numpy(self.form.unpack(stored)), torch.from_numpy(mask)

    def _addresses(self, rows: np.ndarray) -> np.ndarray:
        """The position of each row's first token: in PLAIN pages of binary, each value follows its
        length in 4 bytes.
        """
        groups = self._groups.find(rows)
        firsts = self._groups.firsts[groups]
        # Offsets count from the row group's first row, since payloads of different groups are not
        # adjacent.
        tokens_before = self.starts[rows].astype(np.int64) - self.starts[firsts]
        bytes_before = tokens_before * self.form.token_bytes + 4 * (rows - firsts + 1)
        addresses: np.ndarray = self._groups.addresses(groups) + bytes_before
        return addresses


class _TextFile:
    def __init__(self, path: Path) -> None:
        with damage_named(path), open_file(path, TEXT) as file:
            metadata = read_metadata(file)
            self.form = TextForm(int(metadata["width"]), str(metadata["dtype"]))
            self.lengths = (
                file.read(columns=["length"]).column("length").to_numpy().astype(np.int64)
            )
            self.column = PagedColumn(file, path, "embedding")
        # PLAIN pages of binary put each value's length, 4 bytes, in front of it.
        before = np.concatenate(
            [[0], np.cumsum(self.lengths * self.form.token_bytes + 4, dtype=np.int64)]
        )
        self.payload_bytes = np.diff(before[self.column.firsts])


def _keys(path: Path) -> np.ndarray:
    with damage_named(path), open_file(path, TEXT) as file:
        return key_numbers(file.read(columns=["key"]).column("key"))


def text_metadata(width: int, weights: Mapping[str, str], dtype: str = "float16") -> dict[str, Any]:
    """The footer of a text shard: width and dtype of its `TextForm`, and the sha256 of what made
    the embeddings.
    """
    return {"width": width, "dtype": dtype, "weights": dict(weights)}


def captions_by_key(captions: Output, keys: Sequence[Key]) -> dict[Key, list[str]]:
    """The captions of some pictures, all tags kept, in the order of their index; pictures without
    one have an empty list.
    """
    table = read_tables(captions, "captions", ["key", "caption"])
    wanted = table.filter(pc.is_in(table.column("key"), pa.array(list(keys), pa.string())))
    captions_of: dict[Key, list[str]] = {key: [] for key in keys}
    for key, caption in zip(
        wanted.column("key").to_pylist(), wanted.column("caption").to_pylist(), strict=True
    ):
        captions_of[key].append(plain_caption(caption))
    return captions_of
