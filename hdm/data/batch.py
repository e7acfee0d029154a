"""What a training step gets of the data: the raw latents as they were stored, and what makes them
latents and tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdm.keys import Key

_SHARED = ("key_of_row", "shift", "scale", "crops")  # not by sample


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch.

    It holds what is small: latents and texts in 16 bits, positions by crop and not by sample.
    `latent`, `text` and `positions` are made from them where the batch lies, when they are first
    asked for: a copy to an accelerator has half the bytes, and the CPU does no arithmetic.

    Args:
        rows: of the pictures in the loader's files, (b,) int64.
        key_of_row: the picture's key.
        raw: raw latents (b, C, S, S), float16 or bfloat16.
        shift, scale: (C, 1, 1) float32: latent = (raw latent - shift) · scale.
        crops: (number of different crops, N, 2) float32, (y, x) of each token on the patch grid, as
            the crop has them in the whole picture.
        crop: which of them each sample is, (b,) int64.
        log_aspect: (b,) float32, ln(width / height) of the whole picture as encoded.
        text_mask: (b, T) bool, True where there is text.
        token_ids: (b, T) int32, where the text encoder runs in training; else None.
        raw_text: (b, T, D) float16, zero where there is no text, where text embeddings are cached;
            else None.
        features: (b, N, V) float16, of a vision model at each token, where training aligns to them;
            else None.
    """

    rows: np.ndarray
    key_of_row: Callable[[int], Key]
    raw: Tensor
    shift: Tensor
    scale: Tensor
    crops: Tensor
    crop: Tensor
    log_aspect: Tensor
    text_mask: Tensor
    token_ids: Tensor | None = None
    raw_text: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def latent(self) -> Tensor:
        """(b, C, S, S) float32, normalised."""
        # In place: one new array, not three.
        return self.raw.float().sub_(self.shift).mul_(self.scale)

    @cached_property
    def text(self) -> Tensor | None:
        """(b, T, D) float32, cached text embeddings."""
        return None if self.raw_text is None else self.raw_text.float()

    @cached_property
    def positions(self) -> Tensor:
        """(b, N, 2) float32, of each sample's crop."""
        return self.crops[self.crop]

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the pictures, read from the files: for messages."""
        return tuple(map(self.key_of_row, self.rows.tolist()))

    @classmethod
    def interleave(
        cls, parts: Sequence[Batch], places: Sequence[np.ndarray], key_of_row: Callable[[int], Key]
    ) -> Batch:
        """One batch of the samples of several, which have texts of one length and the same shift
        and scale.

        Args:
            parts: at least one.
            places: where each part's samples go, together every place once.
            key_of_row: of the rows, which are those of the parts.
        """
        count = sum(map(len, parts))
        first = parts[0]

        def weave(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            if isinstance(values[0], np.ndarray):
                interleaved = np.empty(count, values[0].dtype)
            elif values[0] is not None:
                interleaved = values[0].new_empty((count, *values[0].shape[1:]))
            else:
                return None
            for place, value in zip(places, values, strict=True):
                interleaved[place] = value
            return interleaved

        before = itertools.accumulate((len(part.crops) for part in parts[:-1]), initial=0)
        parts = [
            replace(part, crop=part.crop + number)
            for part, number in zip(parts, before, strict=True)
        ]
        each = {field.name: weave(field.name) for field in fields(cls) if field.name not in _SHARED}
        return cls(
            key_of_row=key_of_row,
            shift=first.shift,
            scale=first.scale,
            crops=torch.cat([part.crops for part in parts]),
            **each,
        )

    def part(self, start: int, stop: int) -> Batch:
        """Some of its samples, as a micro-batch."""
        parts = {
            name: value[start:stop]
            for name, value in self._values().items()
            if name not in _SHARED and value is not None
        }
        return replace(self, **parts)

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device; from pinned memory, the copy goes on while the CPU does other
        things.
        """
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same in memory from which an accelerator copies by itself; needs CUDA."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: function(value)
            for name, value in self._values().items()
            if isinstance(value, Tensor)
        }
        return replace(self, **changed)

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
