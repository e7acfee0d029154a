"""The rows of a split's pictures and of their captions, in a few bytes per picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Index:
    """The pictures of a split in order of key, so that the order does not depend on how shards are
    divided.

    Args:
        rows: of the latents over all files, (n,) int32.
        caption_starts: start of each picture's captions in `captions`, and the total at the end; (n
            + 1,) int32.
        captions: rows of the table of captions, a picture's in the order of their index, (number of
            captions,) int32.
    """

    rows: np.ndarray
    caption_starts: np.ndarray
    captions: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def without(self, marked: np.ndarray) -> np.ndarray:
        """The pictures without a marked caption: (number of rows in the captions' table,) bool →
        (n,) bool.
        """
        before = np.concatenate(
            [np.zeros(1, np.int32), np.cumsum(marked[self.captions], dtype=np.int32)]
        )
        unmarked: np.ndarray = before[self.caption_starts[1:]] == before[self.caption_starts[:-1]]
        return unmarked

    @property
    def num_bytes(self) -> int:
        return self.rows.nbytes + self.caption_starts.nbytes + self.captions.nbytes


def build_index(latent_keys: np.ndarray, split_keys: np.ndarray, caption_keys: np.ndarray) -> Index:
    """Join latents, split and captions by key; keys are not kept.

    Args:
        latent_keys: of the latents' rows, (…,) uint64.
        split_keys: of the pictures of the split; those without a latent are left out.
        caption_keys: of the captions' rows, a picture's in the order of their index.
    """
    # Rows in 32 bits and no keys: 10⁷ pictures with a caption each take 171 MB (bench/RESULTS.md).
    order = np.argsort(latent_keys, kind="stable").astype(np.int32)
    rows = order[_members(latent_keys[order], split_keys)]
    keys = latent_keys[rows]
    # A stable sort keeps each picture's captions in the order of their index.
    order = np.argsort(caption_keys, kind="stable").astype(np.int32)
    in_order = caption_keys[order]
    firsts = in_order.searchsorted(keys)
    counts = in_order.searchsorted(keys, side="right") - firsts
    starts = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
    # For all pictures at once, the places of their captions in `order`: a running number, plus the
    # distance from where a picture's captions begin in the result to where they begin in `order`.
    places = np.repeat(firsts - starts[:-1], counts) + np.arange(starts[-1])
    return Index(rows, starts, order[places])


def _members(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each of some sorted keys is among the wanted ones."""
    if not len(wanted):
        return np.zeros(len(keys), bool)
    wanted = np.sort(wanted)
    # searchsorted places keys above all wanted ones past the end.
    among: np.ndarray = wanted[np.minimum(wanted.searchsorted(keys), len(wanted) - 1)] == keys
    return among
