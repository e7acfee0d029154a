"""A training step's data: raw latents as stored, with everything needed to compute latents and
tokens.
"""

from __future__ import annotations

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

    It holds compact data: latents and texts in 16 bits, positions per crop instead of per sample.
    `latent`, `text` and `positions` are computed from these on the batch's device when first used,
    so a copy to an accelerator takes half the bytes and the CPU does no arithmetic.

    Args:
        rows: of the pictures in the loader's files, (b,) int64.
        key_of_row: the picture's key.
        raw: raw latents (b, C, S, S), float16 or bfloat16.
        shift, scale: (C, 1, 1) float32: latent = (raw latent - shift) · scale.
        crops: (number of different crops, N, 2) float32, (y, x) of each token on the patch grid,
            relative to the whole picture.
        crop: index of each sample's crop, (b,) int64.
        log_aspect: (b,) float32, ln(width / height) of the whole picture as encoded.
        text_mask: (b, T) bool, True where there is text.
        token_ids: (b, T) int32 if the text encoder runs in training; else None.
        raw_text: (b, T, D) float16 if text embeddings are cached, zero where there is no text; else
            None.
        features: (b, N, V) float16, a vision model's at each token, if training aligns to them;
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
        """The pictures' keys, read from the files, for messages."""
        return tuple(map(self.key_of_row, self.rows.tolist()))

    @classmethod
    def interleave(
        cls, parts: Sequence[Batch], places: Sequence[np.ndarray], key_of_row: Callable[[int], Key]
    ) -> Batch:
        """One batch with the samples of several, which must have equal text lengths, shift and
        scale.

        Args:
            parts: at least one.
            places: the positions of each part's samples; together they cover every position once.
            key_of_row: of the parts' rows.
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
            # Data sets alternate sample by sample, so their parts are scattered to their places.
            for place, value in zip(places, values, strict=True):
                interleaved[place] = value
            return interleaved

        # The parts' crops are concatenated, so each part's numbers follow those before it.
        renumbered = []
        num_crops = 0
        for part in parts:
            renumbered.append(replace(part, crop=part.crop + num_crops))
            num_crops += len(part.crops)
        parts = renumbered
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
        # `replace` calls the constructor, so a latent cached for the whole batch is not carried
        # over.
        parts = {}
        for name, value in self._values().items():
            if name not in _SHARED and value is not None:
                parts[name] = value[start:stop]
        return replace(self, **parts)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; from pinned memory, the copy is asynchronous."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in pinned memory, which an accelerator copies asynchronously; needs CUDA."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        # Only tensors move: rows and keys serve messages, and stay in main memory.
        changed: dict[str, Any] = {}
        for name, value in self._values().items():
            if isinstance(value, Tensor):
                changed[name] = function(value)
        return replace(self, **changed)

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
