"""Captions whose tags are sampled anew at every position of the training clock, and tokenized when
read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from hdm.caption_text.tag_form import TagDraws, drawn_caption
from hdm.data.tables import read_tables
from hdm.keys import key_numbers
from hdm.store import Output

# Row and position share an int64: the row below 2³², the position, below 2³¹, above it.
_ROW_BITS = 32


class TagTable:
    """A `CaptionTable` of token ids. Each process holds the texts in memory.

    Args:
        captions: the output `caption`.
        draws: which tags are dropped and reordered.
        tokenize: turns captions into token ids, truncated as a phase requires.
        pad_id: fills a batch up.
    """

    def __init__(
        self,
        captions: Output,
        draws: TagDraws,
        tokenize: Callable[[list[str]], list[list[int]]],
        pad_id: int,
    ) -> None:
        table = read_tables(captions, "captions", ["key", "caption"])
        self.keys = key_numbers(table.column("key"))
        # The empty caption follows the last row. Arrow's strings take a fraction of the memory of
        # Python's.
        self._texts = pa.chunked_array(
            [*table.column("caption").chunks, pa.array([""], pa.string())]
        )
        self._draws = draws
        self._tokenize = tokenize
        self._pad_id = pad_id

    @property
    def empty(self) -> int:
        return len(self._texts) - 1

    def at_position(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Each row and position combined in one number, from which the other methods make the
        caption.
        """
        combined: np.ndarray = positions.astype(np.int64) << _ROW_BITS | rows
        return combined

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.array([len(ids) for ids in self._token_ids(rows)], np.int32)

    def read(self, rows: np.ndarray, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (n, num_tokens) int32, padded with the pad id, and their mask (n, num_tokens)
        bool.
        """
        token_ids = torch.full((len(rows), num_tokens), self._pad_id, dtype=torch.int32)
        mask = torch.zeros((len(rows), num_tokens), dtype=torch.bool)
        for number, ids in enumerate(self._token_ids(rows)):
            token_ids[number, : len(ids)] = torch.tensor(ids[:num_tokens], dtype=torch.int32)
            mask[number, : len(ids)] = True
        return token_ids, mask

    def _token_ids(self, rows: np.ndarray) -> list[list[int]]:
        texts = self._texts.take(pa.array(rows & (1 << _ROW_BITS) - 1)).to_pylist()
        positions = (rows >> _ROW_BITS).tolist()
        captions = []
        for text, position in zip(texts, positions, strict=True):
            captions.append(drawn_caption(text, self._draws, position))
        return self._tokenize(captions)
