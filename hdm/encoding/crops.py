"""Compare crops of a picture's latent with latents of the cropped picture.

The difference is the cost of encoding a picture once and cropping its latent in training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hdm.models.autoencoder import Autoencoder

BORDER = 2  # latent positions from a cut side that count as its border


@dataclass(frozen=True)
class CropError:
    """Root mean square difference in units of the latents' standard deviation, near the cut sides
    and elsewhere.
    """

    interior: float
    border: float


def crop_error(
    autoencoder: Autoencoder, images: Iterable[Tensor], multiple_px: int, tile_px: int | None = None
) -> CropError | None:
    """Compare square crops about the middle.

    Args:
        images: each (1, 3, H, W) in [-1, 1]; square ones are left out, since training does not crop
            them.
        multiple_px: crops begin at multiples of it, as in training: the autoencoder's downscale
            times the model's patch.
        tile_px: as for `Autoencoder.encode`.

    Returns:
        None if nothing can be measured, because all pictures are square or so small that they are
        all border.
    """
    wholes = []
    crops = []
    borders = []
    for image in images:
        side, longer = sorted(image.shape[-2:])
        if longer == side:
            continue
        axis = -2 if image.shape[-2] > image.shape[-1] else -1
        # Crops begin at whole patches, as in training, and both ways see the same pixels.
        start = (longer - side) // 2 // multiple_px * multiple_px
        size = side // autoencoder.downscale
        whole = autoencoder.normalize(autoencoder.encode(image, tile_px=tile_px))[0]
        cropped = image.narrow(axis, start, side)
        crop = autoencoder.normalize(autoencoder.encode(cropped, tile_px=tile_px))[0]
        wholes.append(whole.narrow(axis, start // autoencoder.downscale, size).cpu().flatten(1))
        crops.append(crop.cpu().flatten(1))
        # Only sides where pixels were cut off count as a border.
        near = torch.zeros(size, dtype=torch.bool)
        near[: BORDER if start else 0] = True
        near[size - (BORDER if start + side < longer else 0) :] = True
        borders.append((near[:, None] if axis == -2 else near).expand(size, size).flatten())
    if not crops:
        return None
    crops_CN = torch.cat(crops, 1)
    border = torch.cat(borders)
    squares = (torch.cat(wholes, 1) - crops_CN).square().mean(0)
    # Variances are taken by channel, so that differences between channels' means do not count.
    spread = crops_CN.var(1).mean()
    if border.all() or not border.any():
        return None
    return CropError(
        interior=(squares[~border].mean() / spread).sqrt().item(),
        border=(squares[border].mean() / spread).sqrt().item(),
    )
