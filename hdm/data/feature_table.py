"""Cached features of pictures at the tokens of a crop (made by `hdm.encoding.features`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hdm.data.latent_files import open_latents
from hdm.errors import InputError
from hdm.store import Output

log = logging.getLogger(__name__)


class Crop(NamedTuple):
    """A square crop, in latent pixels of a frame of height × width; if mirrored, of the mirrored
    frame.
    """

    height: int
    width: int
    top: int
    left: int
    side: int
    mirrored: bool = False


def at_tokens(grid: Tensor, crop: Crop, patch_size: int) -> Tensor:
    """Features at the centres of a crop's tokens, by bilinear interpolation between the centres of
    the vision model's patches.

    Both grids cover the same frame, so relative positions agree. Beyond the outermost patches'
    centres, the nearest value is used.

    Args:
        grid: (D, h, w) of the full frame.
        patch_size: latent pixels of a token, on each axis.

    Returns:
        (N, D) float32, row-major, N = (side / patch)².
    """
    centres = patch_size * (torch.arange(crop.side // patch_size) + 0.5)
    # grid_sample's -1 and 1 are the frame's borders.
    y = 2 * (crop.top + centres) / crop.height - 1
    x = 2 * (crop.left + centres) / crop.width - 1
    # The stored grid is not mirrored, so a mirrored crop reads it at -x. grid_sample expects (x,
    # y).
    where = torch.stack(torch.meshgrid(y, -x if crop.mirrored else x, indexing="ij"), -1).flip(-1)
    # With align_corners=False, -1 and 1 are the outer edges of the outermost cells, as above.
    sampled = F.grid_sample(
        grid.float()[None], where[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0].flatten(1).T


class FeatureTable:
    """The features of some pictures.

    Args:
        features: the output `encode.features`.
        keys: of the pictures, as numbers, (n,) uint64. Those without features (some were not finite
            in 16 bits) have zeros, which pull nowhere.

    Attributes:
        width: of a feature.
        made_by: the vision model's class and weights.

    Raises:
        InputError: none of the pictures has features.
    """

    def __init__(self, features: Output, keys: np.ndarray) -> None:
        self._files = open_latents(features)
        known = np.concatenate([np.zeros(0, np.uint64), *(file.keys for file in self._files)])
        self._firsts = np.cumsum([0, *map(len, self._files)])
        # searchsorted places a key beyond the last past the end: it is clamped to the last place,
        # where the comparisons below find another key.
        order = np.argsort(known)
        places = np.minimum(np.searchsorted(known, keys, sorter=order), len(known) - 1)
        if not len(known) or not (known[order[places]] == keys).any():
            raise InputError(
                "holds no features of the pictures that are trained on",
                where=features.path,
                do="run again --from encode",
            )
        self._rows = np.where(known[order[places]] == keys, order[places], -1)
        if lacking := int((self._rows < 0).sum()):
            log.warning("%d of %d pictures have no features", lacking, len(keys))
        form = self._files[0].form
        self.width = form.channels
        self.made_by = dict(form.autoencoder)

    def read(self, pictures: np.ndarray, crops: Sequence[Crop], patch_size: int) -> Tensor:
        """(n, N, D) float16 at the tokens of each picture's crop; pictures are numbered as their
        keys were given.

        Raises:
            DamagedError: a row group, touched for the first time, is not what was written.
        """
        num_tokens = (crops[0].side // patch_size) ** 2
        features = torch.zeros((len(pictures), num_tokens, self.width), dtype=torch.float16)
        for into, row, crop in zip(features, self._rows[pictures].tolist(), crops, strict=True):
            if row >= 0:
                number = int(self._firsts.searchsorted(row, side="right")) - 1
                [grid] = self._files[number].latents([row - int(self._firsts[number])])
                into.copy_(at_tokens(grid, crop, patch_size))
        return features
