"""LPIPS (arXiv 1801.03924) by torchmetrics. Weights have to be on this machine; none are
downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hdm.errors import InputError

SMALLEST_PX = 32  # VGG16 halves four times


def check_perceptual() -> None:
    """Raise an InputError if torchmetrics or VGG16's weights are not on this machine."""
    if importlib.util.find_spec("torchmetrics") is None:
        raise InputError(
            "vae.perceptual_weight needs torchmetrics, which is not installed",
            where="vae.perceptual_weight",
            do="pip install 'hdm-pipeline[perceptual]', or vae.perceptual_weight=0",
        )
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not weights.is_file():
        raise InputError(
            "vae.perceptual_weight needs VGG16's weights, which are not on this machine",
            where=weights,
            do=f"put {url} there, or set vae.perceptual_weight=0",
        )


def load_perceptual(device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of two batches of pictures (B, 3, H, W) in [-1, 1]: their mean LPIPS distance with
    VGG16, differentiable.

    Pictures below 32 px a side are enlarged to it first.

    Raises:
        InputError: torchmetrics or VGG16's weights are not on this machine.
    """
    check_perceptual()
    # The public function builds the network at every call and refuses values beyond [-1, 1], which
    # decoders do produce.
    from torchmetrics.functional.image.lpips import _LPIPS

    network = (
        _LPIPS(pretrained=True, net="vgg", use_dropout=True, eval_mode=True)
        .to(device)
        .requires_grad_(False)
    )

    def distance(decoded: Tensor, target: Tensor) -> Tensor:
        distances: Tensor = network(_enlarged(decoded), _enlarged(target))
        return distances.mean()

    return distance


def _enlarged(image: Tensor) -> Tensor:
    shorter = min(image.shape[-2:])
    if shorter >= SMALLEST_PX:
        return image
    # A whole factor turns pixels into squares and smooths no edge.
    return torch.nn.functional.interpolate(
        image, scale_factor=-(-SMALLEST_PX // shorter), mode="nearest"
    )
