"""Training batches from latent shards. Every batch is a pure function of the number of images seen
before it.

Resuming therefore needs no saved state, on any number of processes: the order of an epoch, the
position of a crop, the choice of a caption and its dropout are computed from the seed and the
position (`hdm.chance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from hdm.caption_text.sides import speak_of_sides
from hdm.chance import permuted, uniform
from hdm.data.batch import Batch
from hdm.data.captions import CaptionTable, TextTable, TokenTable, padded_length
from hdm.data.feature_table import Crop, FeatureTable
from hdm.data.gather import RowGroups, gather
from hdm.data.index import build_index
from hdm.data.latent_files import DTYPES, LatentFile, LatentFormat, open_latents
from hdm.data.tables import num_shards, read_table, shard_name
from hdm.data.tags import TagTable
from hdm.errors import ConfigError, InputError
from hdm.keys import Key, key_numbers
from hdm.positions import PositionKind, crop_map, to_patch_grid
from hdm.store import Output

# Which of the independent draws at a position.
_CROP, _CAPTION, _DROPOUT, _MIRROR = range(4)


BLOCK = 1 << 15
"""Number of an epoch's places drawn at once: a draw takes some thousand numpy calls, which cost as
much for a few places as for thousands.
"""
# A batch may touch two blocks, and a mixture draws each batch twice: for its longest text, then for
# its samples.
KEPT_BLOCKS = 4


class _Cut(IntEnum):
    """The contiguous pieces of a crop."""

    WHOLE, PLANES, LINES = range(3)


@dataclass(frozen=True)
class _Drawn:
    """The choices that define some samples, each (n,).

    Args:
        rows: of the latents over all files.
        groups: their row groups.
        crops: number of the crop's shape and place, as `_crop_number` has it.
        cuts: a `_Cut` each.
        offsets: of the crop's first byte from the payload's.
        mirrored: whether left and right are exchanged; the crop's position is then relative to the
            mirrored picture.
        captions: rows of the captions' table.
    """

    rows: np.ndarray
    groups: np.ndarray
    crops: np.ndarray
    cuts: np.ndarray
    offsets: np.ndarray
    mirrored: np.ndarray
    captions: np.ndarray

    def part(self, start: int, stop: int) -> _Drawn:
        return _Drawn(*(values[start:stop] for values in vars(self).values()))

    @staticmethod
    def join(parts: Sequence[_Drawn]) -> _Drawn:
        if len(parts) == 1:
            return parts[0]
        joined = {}
        for name in vars(parts[0]):
            joined[name] = np.concatenate([getattr(part, name) for part in parts])
        return _Drawn(**joined)


class Loader:
    """Batches of one split.

    Args:
        latents: `encode.<resolution>px`.
        tokens: `encode.tokens`.
        captions: `caption`, from which `tokens` were made; read if `mirror` is set, because a
            caption may mention sides.
        filter: `filter`, which assigns pictures to splits.
        text: `encode.text`, for cached text embeddings; None: batches hold token ids.
        features: `encode.features`; None: batches hold none.
        split: "train", "validation" or "held_out".
        batch_size: of the global batch, over all processes.
        patch_size: of the model; crops begin at multiples of it.
        seed: of the order and of every draw.
        crop: "shifted": at a uniformly random position along the longer side; "centre": in the
            middle.
        mirror: exchange left and right in half of the samples of pictures whose captions mention
            neither sides nor writing.
        caption_dropout: share of samples that get the empty caption.
        tags: the same captions, with tags sampled anew at every position; None: captions as
            encoded.
        max_tokens: captions are truncated to this many; None: as encoded.
        rank: index of this process, from 0.
        world_size: how many processes there are.
        positions: kind of the position map, "box" or "area".

    Raises:
        InputError: the outputs do not belong together.
        ConfigError: the crop is not a whole number of patches.
        DamagedError: a file is not what was written.
    """

    def __init__(
        self,
        latents: Output,
        tokens: Output,
        captions: Output,
        filter: Output,
        text: Output | None = None,
        features: Output | None = None,
        *,
        split: str = "train",
        batch_size: int,
        patch_size: int,
        seed: int = 0,
        crop: Literal["shifted", "centre"] = "shifted",
        mirror: bool = False,
        caption_dropout: float = 0.0,
        tags: TagTable | None = None,
        max_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        positions: PositionKind = "box",
    ) -> None:
        # Keys alone would join outputs of different runs without an error.
        _check_belong_together(latents, tokens, captions, filter, text, features)
        self.split = split
        self.batch_size = batch_size
        self.patch_size = patch_size
        self.seed = seed
        self.crop = crop
        self.caption_dropout = caption_dropout
        self.rank = rank
        self.world_size = world_size
        self.positions_kind = positions
        self.max_tokens = max_tokens or int(tokens.config["max_tokens"])
        self.path = latents.path
        self._files = open_latents(latents)
        if not self._files:
            raise InputError(
                "there are no latents", where=latents.path, do="run from the stage encode"
            )
        self._form = _common_form(self._files)
        self.shift = torch.tensor(self._form.autoencoder["shift"]).view(-1, 1, 1)
        self.scale = torch.tensor(self._form.autoencoder["scale"]).view(-1, 1, 1)
        self.side = self._side()
        self._tokenizer = tokens.summary.get("tokenizer")
        self._captions: CaptionTable = tags or (TextTable(text) if text else TokenTable(tokens))
        keys = np.concatenate([file.keys for file in self._files])
        # Features are looked up by row of the latents' files, so this takes all keys, not only the
        # split's.
        self._features = FeatureTable(features, keys) if features else None
        self._index = build_index(keys, _split_keys(filter, split), self._captions.keys)
        self._mirrorable = self._index.without(_sided(captions)) if mirror else None
        row_bytes = np.concatenate(
            [np.diff(file.firsts) * file.form.row_bytes for file in self._files]
        )
        self._groups = RowGroups([file.column for file in self._files], row_bytes)
        # Sizes are kept by row group, in which all rows have one shape.
        heights = np.array([file.form.height for file in self._files], np.int64)
        widths = np.array([file.form.width for file in self._files], np.int64)
        self._heights = heights[self._groups.files]
        self._widths = widths[self._groups.files]
        self._log_aspects = np.log(self._widths / self._heights).astype(np.float32)
        # Each instance has caches of its own: those of decorated methods would keep every loader
        # alive.
        self._crop_positions = lru_cache(maxsize=4096)(self._map_crop)
        self._positions = lru_cache(maxsize=16)(self._stack_positions)
        self._block = lru_cache(maxsize=KEPT_BLOCKS)(self._draw_block)

    def __len__(self) -> int:
        """Number of pictures in the split."""
        return len(self._index)

    @property
    def num_rows(self) -> int:
        """Number of pictures in the files, of any split."""
        return int(self._groups.firsts[-1])

    @property
    def kind(self) -> dict[str, Any]:
        """Name → value of the properties in which samples of one batch must agree."""
        return {
            "crop side": self.side,
            "dtype": self._form.dtype,
            "autoencoder": dict(self._form.autoencoder),
            "tokenizer": self._tokenizer,
            "text": "text embeddings" if isinstance(self._captions, TextTable) else "token ids",
            "features": self._features.made_by if self._features else None,
        }

    def batch(self, num_images_seen: int) -> Batch:
        """This process's share of the global batch after `num_images_seen` images.

        It depends on the arguments alone: the shares of all processes, in order of rank, are the
        same samples for any `world_size`.

        Raises:
            InputError: the split has no picture.
            DamagedError: a row group, touched for the first time, is not what was written; the file
                is named.
        """
        whole = self._draw(num_images_seen, num_images_seen + self.batch_size)
        # Padded to the longest of the global batch, so that a sample's text does not depend on its
        # neighbours in the process.
        num_tokens = self.padded_length(self._longest(whole))
        # Shares differ by one sample where the processes do not divide the batch.
        start = self.batch_size * self.rank // self.world_size
        stop = self.batch_size * (self.rank + 1) // self.world_size
        return self._batch(whole.part(start, stop), num_tokens)

    def samples(self, start: int, stop: int, num_tokens: int) -> Batch:
        """The samples between two positions of the training clock, at least one, with texts
        truncated and padded to `num_tokens`.
        """
        return self._batch(self._draw(start, stop), num_tokens)

    def _batch(self, drawn: _Drawn, num_tokens: int) -> Batch:
        text, text_mask = self._captions.read(drawn.captions, num_tokens)
        # A table of token ids gives integers, one of text embeddings floats.
        cached = text.is_floating_point()
        crops, crop = _distinct(drawn.crops)
        return Batch(
            rows=drawn.rows,
            key_of_row=self.key,
            raw=self._raw(drawn),
            shift=self.shift,
            scale=self.scale,
            crops=self._positions(tuple(crops.tolist())),
            crop=torch.from_numpy(crop),
            log_aspect=torch.from_numpy(self._log_aspects[drawn.groups]),
            text_mask=text_mask,
            token_ids=None if cached else text,
            raw_text=text if cached else None,
            features=(
                self._features.read(drawn.rows, self._crops(drawn), self.patch_size)
                if self._features
                else None
            ),
        )

    def _crops(self, drawn: _Drawn) -> list[Crop]:
        heights, widths, tops, lefts = np.unravel_index(drawn.crops, self._extent)
        found = []
        for number, mirrored in enumerate(drawn.mirrored.tolist()):
            height, width = int(heights[number]), int(widths[number])
            top, left = int(tops[number]), int(lefts[number])
            found.append(Crop(height, width, top, left, self.side, mirrored))
        return found

    def longest(self, start: int, stop: int) -> int:
        """Length in tokens of the longest text between two positions, before truncation."""
        return self._longest(self._draw(start, stop))

    def _longest(self, drawn: _Drawn) -> int:
        # Of a batch, and not drawn with a block: tags that are redrawn have to be tokenized for it.
        return int(self._captions.lengths(drawn.captions).max())

    def padded_length(self, longest: int) -> int:
        """The length to which texts are padded or truncated."""
        return min(padded_length(longest), self.max_tokens)

    def _side(self) -> int:
        # All files have the same shorter side, that of the resolution.
        side = min(self._form.height, self._form.width)
        if side % self.patch_size:
            raise ConfigError(
                f"latents of {side} × {side} are no whole number of patches of {self.patch_size}",
                where="train.model.patch_size",
                do=(
                    "encode again with this patch size (it is part of the latents' identity), or"
                    " change it back"
                ),
            )
        return side

    def key(self, row: int) -> Key:
        """The key of the picture in a row of the files."""
        file = int(self._groups.files[self._groups.find(np.array(row))])
        return self._files[file].key(row - sum(map(len, self._files[:file])))

    def _draw(self, start: int, stop: int) -> _Drawn:
        """The samples at positions of the training clock. Every epoch is a new permutation,
        computed block by block.
        """
        if not len(self):
            raise InputError(
                f"the split {self.split} has no picture",
                where=self.path,
                do="lower the filter's thresholds, or raise the split's share",
            )
        parts = []
        while start < stop:
            epoch, place = divmod(start, len(self))
            number, inside = divmod(place, BLOCK)
            # The slice ends with its block, so the next turn continues in the next block or epoch.
            part = self._block(epoch, number).part(inside, inside + stop - start)
            parts.append(part)
            start += len(part.rows)
        return _Drawn.join(parts)

    def _draw_block(self, epoch: int, number: int) -> _Drawn:
        places = np.arange(number * BLOCK, min((number + 1) * BLOCK, len(self)))
        pictures = permuted(places, len(self), self.seed, epoch)
        # Draws depend on the training clock, so a picture gets another crop and caption in every
        # epoch.
        positions = epoch * len(self) + places
        # Byte offsets computed from rows do not fit in 32 bits.
        rows = self._index.rows[pictures].astype(np.int64)
        groups = self._groups.find(rows)
        heights = self._heights[groups]
        widths = self._widths[groups]
        place = uniform(positions, self.seed, _CROP) if self.crop == "shifted" else None
        tops = self._offsets(heights, place)
        lefts = self._offsets(widths, place)
        mirrored = self._draw_mirrored(pictures, positions)
        captions = self._draw_captions(pictures, positions)
        channels = self._form.channels
        item = DTYPES[self._form.dtype].itemsize
        return _Drawn(
            rows,
            groups,
            np.ravel_multi_index(
                (heights, widths, tops, np.where(mirrored, widths - self.side - lefts, lefts)),
                self._extent,
            ),
            # A crop of a wide frame is cut line by line; of a tall one, each channel's part is
            # contiguous.
            np.where(
                widths > self.side,
                _Cut.LINES,
                np.where(heights > self.side, _Cut.PLANES, _Cut.WHOLE),
            ),
            item
            * (
                (rows - self._groups.firsts[groups]) * channels * heights * widths
                + tops * widths
                + lefts
            ),
            mirrored,
            captions,
        )

    def _draw_mirrored(self, pictures: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if self._mirrorable is None:
            return np.zeros(len(pictures), bool)
        chosen = uniform(positions, self.seed, _MIRROR) < 0.5
        mirrored: np.ndarray = self._mirrorable[pictures] & chosen
        return mirrored

    def _draw_captions(self, pictures: np.ndarray, positions: np.ndarray) -> np.ndarray:
        starts = self._index.caption_starts[pictures].astype(np.int64)
        counts = self._index.caption_starts[pictures + 1] - starts
        chosen = starts + np.floor(uniform(positions, self.seed, _CAPTION) * counts).astype(
            np.int64
        )
        # A picture without captions has no entry of its own in `captions`, so `given` leaves it
        # out.
        dropped = uniform(positions, self.seed, _DROPOUT) < self.caption_dropout
        given = (counts > 0) & ~dropped
        captions = np.full(len(pictures), self._captions.empty)
        captions[given] = self._index.captions[chosen[given]]
        return self._captions.at_position(captions, positions)

    def _offsets(self, lengths: np.ndarray, place: np.ndarray | None) -> np.ndarray:
        """The start of crops along one axis, in latent pixels, a multiple of the patch size."""
        spare = (lengths - self.side) // self.patch_size
        # Places are counted in patches, so that a crop's patches are also patches of the whole
        # frame.
        return self.patch_size * (
            spare // 2 if place is None else np.floor(place * (spare + 1)).astype(np.int64)
        )

    def _raw(self, drawn: _Drawn) -> Tensor:
        form = self._form
        side = self.side
        begin = self._groups.addresses(drawn.groups) + drawn.offsets
        cuts, cut = _distinct(drawn.cuts)
        if len(cuts) == 1:
            raw = self._cut(cuts[0], begin, drawn.groups)
        else:
            raw = np.empty(
                (len(begin), form.channels * side * side * DTYPES[form.dtype].itemsize), np.uint8
            )
            for number, kind in enumerate(cuts):
                inside = np.flatnonzero(cut == number)
                raw[inside] = self._cut(kind, begin[inside], drawn.groups[inside])
        # The bytes become int16 first, since numpy has no bfloat16.
        latents = torch.from_numpy(raw.view(np.int16).reshape(-1, form.channels, side, side)).view(
            DTYPES[form.dtype]
        )
        if self._mirrorable is not None:
            # A mirrored latent is the mirrored picture's only if the autoencoder commutes with
            # mirroring; for others the error is 0.8 of the latent's norm (bench/RESULTS.md).
            mirrored = torch.from_numpy(drawn.mirrored)
            latents[mirrored] = latents[mirrored].flip(-1)
        return latents

    def _cut(self, kind: int, begin: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Crops of one kind as bytes, (n, C · S · S · itemsize) uint8, copied in the largest pieces
        that are contiguous in the files.
        """
        channels = self._form.channels
        side = self.side
        item = DTYPES[self._form.dtype].itemsize
        if kind == _Cut.WHOLE:
            return gather(begin, channels * side * side * item)
        line_bytes = self._widths[groups] * item
        planes = (
            begin[:, None] + np.arange(channels) * (self._heights[groups] * line_bytes)[:, None]
        )
        if kind == _Cut.PLANES:
            pieces = gather(planes, side * side * item)
        else:
            pieces = gather(
                planes[:, :, None] + np.arange(side) * line_bytes[:, None, None], side * item
            )
        return pieces.reshape(len(begin), -1)

    @cached_property
    def _extent(self) -> tuple[int, int, int, int]:
        """Ranges of the frame's height and width and of the crop's top and left, which number the
        crops.
        """
        height = int(self._heights.max(initial=0)) + 1
        width = int(self._widths.max(initial=0)) + 1
        return height, width, height, width

    def _stack_positions(self, numbers: tuple[int, ...]) -> Tensor:
        """(number of crops, N, 2) float32; cached, because in a data set of squares all batches
        share one crop.
        """
        return torch.stack([self._crop_positions(number) for number in numbers])

    def _map_crop(self, number: int) -> Tensor:
        """(N, 2) float32 of one crop; cached, because a data set has few different crops."""
        height, width, top, left = map(int, np.unravel_index(number, self._extent))
        latent_grid = crop_map(height, width, top, left, self.side, kind=self.positions_kind)
        return to_patch_grid(latent_grid, self.side, self.side, self.patch_size)


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values, and each value's index among them; without sorting if there is only one, as
    in a data set of squares.
    """
    if len(values) and (values == values[0]).all():
        return values[:1], np.zeros(len(values), np.int64)
    return np.unique(values, return_inverse=True)


def _common_form(files: Sequence[LatentFile]) -> LatentFormat:
    forms = [file.form for file in files]
    for file, form in zip(files, forms, strict=True):
        # Heights and widths may differ: each file holds the pictures of one aspect ratio.
        if (form.autoencoder, form.dtype, form.channels) != (
            forms[0].autoencoder,
            forms[0].dtype,
            forms[0].channels,
        ):
            raise InputError(
                "latents of different autoencoders cannot be mixed",
                where=file.path,
                do="encode all with the same one",
            )
    return forms[0]


def _sided(captions: Output) -> np.ndarray:
    """Whether each caption mentions sides or writing, one table at a time: (number of captions,)
    bool, in the order of the tables' rows.
    """
    sided = [np.zeros(0, bool)]
    for number in range(num_shards(captions, "captions")):
        table = read_table(captions.file(shard_name("captions", number)), ["caption"])
        sided.append(speak_of_sides(table.column("caption")).to_numpy())
    return np.concatenate(sided)


def _split_keys(filter: Output, split: str) -> np.ndarray:
    """Keys of a split's pictures, one table at a time."""
    keys = [np.zeros(0, np.uint64)]
    for number in range(num_shards(filter, "scores")):
        scores = read_table(filter.file(shard_name("scores", number)), ["key", "split"])
        keys.append(
            key_numbers(scores.filter(pc.equal(scores.column("split"), split)).column("key"))
        )
    return np.concatenate(keys)


def _check_belong_together(
    latents: Output,
    tokens: Output,
    captions: Output,
    filter: Output,
    text: Output | None,
    features: Output | None,
) -> None:
    pairs = [
        (latents, filter),
        (tokens, captions),
        *([(text, tokens)] if text else []),
        *([(features, filter)] if features else []),
    ]
    for output, needed in pairs:
        if output.inputs.get(needed.name) != needed.digest:
            raise InputError(
                f"{output.name} was not made from this {needed.name}",
                where=output.path,
                do=f"run again from the stage {output.name.split('.')[0]}",
            )
