"""Captions whose tags are sampled anew at every position of the training clock, and tokenized when
read.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from hdm.caption_text.tag_form import TagDraws, drawn_captions
from hdm.data.captions import RaggedRows, unnamed_file
from hdm.data.tables import num_shards, read_table, read_tables, shard_name
from hdm.keys import key_numbers
from hdm.store import Output

# Row and position share an int64: the row below 2³², the position, below 2³¹, above it.
_ROW_BITS = 32


class TagTable:
    """A `CaptionTable` of token ids. The texts lie in an unnamed temporary file.

    Args:
        captions: the output `caption`.
        draws: which tags are dropped and reordered.
        tokenize: turns captions into token ids, int32, truncated as a phase requires.
        pad_id: fills a batch up.
    """

    def __init__(
        self,
        captions: Output,
        draws: TagDraws,
        tokenize: Callable[[list[str]], list[np.ndarray]],
        pad_id: int,
    ) -> None:
        self._output = captions
        self._draws = draws
        self._tokenize = tokenize
        self._pad_id = pad_id
        lengths = []
        # Only one shard's table is in memory at a time.
        with unnamed_file("captions") as file:
            for number in range(num_shards(captions, "captions")):
                path = captions.file(shard_name("captions", number))
                column = read_table(path, ["caption"]).column("caption").cast(pa.binary())
                lengths.append(pc.binary_length(column).to_numpy())
                for chunk in column.chunks:
                    file.write(b"".join(chunk.to_pylist()))
            file.write(b"\0")  # an empty file cannot be mapped
            file.flush()
            self._texts = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # The empty caption follows the last row.
        self._rows = RaggedRows(np.concatenate([*lengths, [0]]))
        # Those last asked for: a batch's lengths come first, then its captions.
        self._latest: dict[int, np.ndarray] = {}

    @property
    def keys(self) -> np.ndarray:
        return key_numbers(read_tables(self._output, "captions", ["key"]).column("key"))

    @property
    def empty(self) -> int:
        return self._rows.empty

    def at_position(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Each row and position combined in one number, from which the other methods make the
        caption.
        """
        combined: np.ndarray = positions.astype(np.int64) << _ROW_BITS | rows
        return combined

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.fromiter(map(len, self._token_ids(rows)), np.int32, len(rows))

    def read(self, rows: np.ndarray, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (n, num_tokens) int32, padded with the pad id, and their mask (n, num_tokens)
        bool.
        """
        texts = [ids[:num_tokens] for ids in self._token_ids(rows)]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        mask = np.arange(num_tokens) < lengths[:, None]
        token_ids = np.full(mask.shape, self._pad_id, np.int32)
        # True places in order of rows are the texts one after the other.
        token_ids[mask] = np.concatenate(texts)
        return torch.from_numpy(token_ids), torch.from_numpy(mask)

    def _token_ids(self, rows: np.ndarray) -> list[np.ndarray]:
        numbers: list[int] = rows.tolist()
        if not all(map(self._latest.__contains__, numbers)):
            captions = drawn_captions(
                self._captions(rows), self._draws, (rows >> _ROW_BITS).tolist()
            )
            self._latest = dict(zip(numbers, self._tokenize(captions), strict=True))
        return [self._latest[number] for number in numbers]

    def _captions(self, rows: np.ndarray) -> list[str]:
        places = rows & (1 << _ROW_BITS) - 1
        starts = self._rows.starts[places].tolist()
        ends = self._rows.starts[places + 1].tolist()
        texts = []
        for start, end in zip(starts, ends, strict=True):
            texts.append(self._texts[start:end].decode())
        return texts
