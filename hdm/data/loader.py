"""Batches for training from latent shards: every batch a pure function of how many images were seen before it.

Nothing has to be saved to go on at the same place, on any number of processes: the order of an epoch, the place of a crop, the choice
of a caption and its dropout are computed from the seed and the position (`hdm.data.order`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from hdm.data.captions import CaptionTable, TextTable, TokenTable, key_numbers, key_text
from hdm.data.latents import DTYPES, LatentFile, open_latents
from hdm.data.order import permuted, uniform
from hdm.data.tables import read_tables
from hdm.errors import ConfigError, InputError
from hdm.positions import PositionKind, crop_map, to_patch_grid
from hdm.store import Output

LENGTH_STEP = 8
"""Texts are padded to a multiple of it, so that a model meets few lengths."""

# Which of the independent draws at a position.
_CROP, _CAPTION, _DROPOUT = range(3)


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch.

    Args:
        keys: of the pictures, b of them.
        latent: (b, C, S, S) float32, normalised.
        positions: (b, N, 2) float32, (y, x) of each token on the patch grid, as the crop has them in the whole picture.
        log_aspect: (b,) float32, ln(width / height) of the whole picture as encoded.
        text_mask: (b, T) bool, True where there is text.
        token_ids: (b, T) int64, where the text encoder runs in training; else None.
        text: (b, T, D) float32, where text embeddings are cached; else None.
    """

    keys: tuple[str, ...]
    latent: Tensor
    positions: Tensor
    log_aspect: Tensor
    text_mask: Tensor
    token_ids: Tensor | None = None
    text: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, start: int, stop: int) -> Batch:
        """Some of its samples, as a micro-batch."""
        parts: dict[str, Any] = {name: value[start:stop] for name, value in self._values().items() if value is not None}
        return replace(self, **parts)

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self._values().items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class _Drawn:
    """What the samples of a global batch are, each (batch_size,)."""

    rows: np.ndarray
    tops: np.ndarray
    lefts: np.ndarray
    captions: np.ndarray

    def part(self, start: int, stop: int) -> _Drawn:
        return _Drawn(*(getattr(self, field.name)[start:stop] for field in fields(self)))


class Loader:
    """Batches of one split.

    Args:
        latents: `encode.<resolution>px`.
        tokens: `encode.tokens`.
        captions: `caption`, which `tokens` were made from.
        filter: `filter`, which says what split a picture is in.
        text: `encode.text`, for cached text embeddings; None: batches hold token ids.
        split: "train", "validation" or "held_out".
        batch_size: of the global batch, over all processes.
        patch_size: of the model; crops begin at multiples of it.
        seed: of the order and of every draw.
        crop: "shifted": at a uniform place along the longer side; "centre": in the middle.
        caption_dropout: share of samples that get the empty caption.
        max_tokens: captions are cut to so many; None: as they were encoded.
        rank, world_size: which process this is, and of how many.
        positions: kind of the position map, "box" or "area".

    Raises:
        InputError: the outputs do not belong together.
        ConfigError: the crop is no whole number of patches.
        DamagedError: a file is not what was written.
    """

    def __init__(
        self,
        latents: Output,
        tokens: Output,
        captions: Output,
        filter: Output,
        text: Output | None = None,
        *,
        split: str = "train",
        batch_size: int,
        patch_size: int,
        seed: int = 0,
        crop: Literal["shifted", "centre"] = "shifted",
        caption_dropout: float = 0.0,
        max_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        positions: PositionKind = "box",
    ) -> None:
        _check_belong_together(latents, tokens, captions, filter, text)
        self.split, self.batch_size, self.patch_size, self.seed, self.crop = split, batch_size, patch_size, seed, crop
        self.caption_dropout, self.rank, self.world_size, self.positions_kind = caption_dropout, rank, world_size, positions
        self.max_tokens = max_tokens or int(tokens.config["max_tokens"])
        self._files = open_latents(latents)
        if not self._files:
            raise InputError("there are no latents", where=latents.path, do="run from the stage encode")
        self._normalize = _Normalizer(self._files)
        self.side = self._side()
        self._captions: CaptionTable = TextTable(text) if text else TokenTable(tokens)
        self._file, self._row, self._keys = _rows_of_split(self._files, filter, split)
        self._first_caption, self._num_captions = self._captions.index.find(self._keys)
        self._heights = np.array([file.form.height for file in self._files])
        self._widths = np.array([file.form.width for file in self._files])
        self._positions = lru_cache(maxsize=4096)(self._crop_positions)

    def __len__(self) -> int:
        """Pictures in the split."""
        return len(self._keys)

    def batch(self, num_images_seen: int) -> Batch:
        """This process's share of the global batch that begins after `num_images_seen` images.

        A function of the arguments alone: the shares of all processes, in order of rank, are the same samples for any `world_size`.

        Raises:
            InputError: the split has no picture.
            DamagedError: a row group, touched for the first time, is not what was written; the file is named.
        """
        if not len(self):
            raise InputError(f"the split {self.split} has no picture", do="lower the filter's thresholds, or raise the split's share")
        whole = self._draw(np.arange(num_images_seen, num_images_seen + self.batch_size))
        # Padded to the longest of the global batch, so that a sample's text does not depend on its neighbours in the process.
        num_tokens = self._padded_length(whole.captions)
        mine = whole.part(*(self.batch_size * rank // self.world_size for rank in (self.rank, self.rank + 1)))
        text, text_mask = self._captions.read(mine.captions, num_tokens)
        cached = text.is_floating_point()
        return Batch(
            keys=tuple(key_text(key) for key in self._keys[mine.rows]),
            latent=self._latent(mine),
            positions=self._stacked_positions(mine),
            log_aspect=torch.from_numpy(self._log_aspect(mine)),
            text_mask=text_mask,
            token_ids=None if cached else text,
            text=text if cached else None,
        )

    def _side(self) -> int:
        side = min(self._files[0].form.height, self._files[0].form.width)
        if side % self.patch_size:
            raise ConfigError(
                f"latents of {side} × {side} are no whole number of patches of {self.patch_size}",
                where="train.model.patch_size",
                do="encode again with this patch size (it is part of the latents' identity), or change it back",
            )
        return side

    def _draw(self, positions: np.ndarray) -> _Drawn:
        rows = self._order(positions)
        file = self._file[rows]
        place = uniform(positions, self.seed, _CROP) if self.crop == "shifted" else None
        num_captions = self._num_captions[rows]
        choice = np.floor(uniform(positions, self.seed, _CAPTION) * num_captions).astype(np.int64)
        dropped = uniform(positions, self.seed, _DROPOUT) < self.caption_dropout
        captions = np.full(len(rows), len(self._captions.lengths) - 1)  # the empty caption
        given = (num_captions > 0) & ~dropped
        captions[given] = self._captions.index.rows((self._first_caption[rows] + choice)[given])
        return _Drawn(rows, self._offsets(self._heights[file], place), self._offsets(self._widths[file], place), captions)

    def _order(self, positions: np.ndarray) -> np.ndarray:
        """The split's row at each position: every epoch is a permutation of its own."""
        epochs, places = np.divmod(positions, len(self))
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            rows[inside] = permuted(places[inside], len(self), self.seed, int(epoch))
        return rows

    def _offsets(self, lengths: np.ndarray, place: np.ndarray | None) -> np.ndarray:
        """Where crops begin along one axis, in latent pixels, a multiple of the patch."""
        spare = (lengths - self.side) // self.patch_size
        return self.patch_size * (spare // 2 if place is None else np.floor(place * (spare + 1)).astype(np.int64))

    def _padded_length(self, captions: np.ndarray) -> int:
        longest = int(self._captions.lengths[captions].max())
        return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.max_tokens)

    def _latent(self, drawn: _Drawn) -> Tensor:
        form, side = self._files[0].form, self.side
        size = DTYPES[form.dtype].itemsize
        raw = torch.empty((len(drawn.rows), form.channels, side, side), dtype=DTYPES[form.dtype])
        places = zip(
            self._file[drawn.rows].tolist(), self._row[drawn.rows].tolist(), drawn.tops.tolist(), drawn.lefts.tolist(), strict=True
        )
        for into, (file, row, top, left) in zip(raw.view(torch.uint8).numpy(), places, strict=True):
            into[:] = self._files[file].row(row)[:, top : top + side, left * size : (left + side) * size]
        return self._normalize(raw)

    def _stacked_positions(self, drawn: _Drawn) -> Tensor:
        file = self._file[drawn.rows]
        places = zip(self._heights[file].tolist(), self._widths[file].tolist(), drawn.tops.tolist(), drawn.lefts.tolist(), strict=True)
        return torch.from_numpy(np.stack([self._positions(*place) for place in places]))

    def _crop_positions(self, height: int, width: int, top: int, left: int) -> np.ndarray:
        """(N, 2) float32 of one crop; kept, since a data set has few of them."""
        latent_grid = crop_map(height, width, top, left, self.side, kind=self.positions_kind)
        return to_patch_grid(latent_grid, self.side, self.side, self.patch_size).numpy()

    def _log_aspect(self, drawn: _Drawn) -> np.ndarray:
        file = self._file[drawn.rows]
        return np.log(self._widths[file] / self._heights[file]).astype(np.float32)


class _Normalizer:
    """Raw latent to latent, with the statistics that the shards' footers give."""

    def __init__(self, files: Sequence[LatentFile]) -> None:
        forms = [file.form for file in files]
        for file, form in zip(files, forms, strict=True):
            if (form.autoencoder, form.dtype, form.channels) != (forms[0].autoencoder, forms[0].dtype, forms[0].channels):
                raise InputError("latents of different autoencoders cannot be mixed", where=file.path, do="encode all with the same one")
        self.shift = torch.tensor(forms[0].autoencoder["shift"]).view(-1, 1, 1)
        self.scale = torch.tensor(forms[0].autoencoder["scale"]).view(-1, 1, 1)

    def __call__(self, raw: Tensor) -> Tensor:
        return (raw.float() - self.shift) * self.scale


def _rows_of_split(files: Sequence[LatentFile], filter: Output, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """File, row in it, and key of every picture of the split, in order of key: so the order is the same however shards are cut."""
    scores = read_tables(filter, "scores", ["key", "split"])
    wanted = np.sort(key_numbers(scores.filter(pc.equal(scores.column("split"), split)).column("key")))
    keys = np.concatenate([file.keys for file in files])
    file = np.repeat(np.arange(len(files), dtype=np.int32), [len(file) for file in files])
    row = np.concatenate([np.arange(len(file), dtype=np.int32) for file in files])
    inside = np.flatnonzero(np.isin(keys, wanted))
    inside = inside[np.argsort(keys[inside], kind="stable")]
    return file[inside], row[inside], keys[inside]


def _check_belong_together(latents: Output, tokens: Output, captions: Output, filter: Output, text: Output | None) -> None:
    pairs = [(latents, filter), (tokens, captions), *([(text, tokens)] if text else [])]
    for output, needed in pairs:
        if output.inputs.get(needed.name) != needed.digest:
            raise InputError(
                f"{output.name} was not made from this {needed.name}",
                where=output.path,
                do=f"run again from the stage {output.name.split('.')[0]}",
            )
