"""Patch features of a frozen vision transformer from transformers: DINOv2, DINOv3, ViT and others
with square patches.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from hdm.errors import InputError, Refusal
from hdm.models.components import hushed, locate, read_json

_DO = (
    "name a vision transformer of transformers in components.vision, for example"
    " facebook/dinov2-base"
)


class Vision:
    """A vision transformer with its own normalisation of pixels.

    Attributes:
        width: of a feature.
        patch_size: pixels of a patch, on each axis.
    """

    def __init__(self, model: Any, mean: list[float], std: list[float], device: str) -> None:
        self.model = model.to(device)
        self.device = torch.device(device)
        self.width = int(model.config.hidden_size)
        self.patch_size = int(model.config.patch_size)
        # Pixels come in [-1, 1], the model's own mean and deviation are of [0, 1].
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)
        # Some models need to be told that pictures may have another size than in their training.
        asks = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if asks else {}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The last layer's features of each patch, after its norm.

        Args:
            images: (n, 3, H, W) in [-1, 1], sides multiples of the patch.

        Returns:
            (n, width, H / patch, W / patch) float32.
        """
        height = images.shape[-2] // self.patch_size
        width = images.shape[-1] // self.patch_size
        pixels = (images.to(self.device) / 2 + 0.5 - self.mean) / self.std
        states = self.model(pixel_values=pixels, **self._options).last_hidden_state
        # Class and register tokens come first.
        patches = states[:, states.shape[1] - height * width :]
        features: Tensor = patches.float().transpose(1, 2).unflatten(2, (height, width))
        return features


def vision_sizes(reference: str) -> tuple[int, int]:
    """(width, patch size) from a model's configuration alone.

    Raises:
        InputError: it is not on this machine, or is no vision transformer.
    """
    path = locate(reference) / "config.json"
    config = read_json(path, _DO)
    width = config.get("hidden_size")
    patch_size = config.get("patch_size")
    if not (isinstance(width, int) and isinstance(patch_size, int)):
        raise InputError(
            "is of no vision transformer: it has no hidden_size and patch_size", where=path, do=_DO
        )
    return width, patch_size


def load_vision(reference: str, device: str = "cpu") -> Vision:
    """The vision model in a local folder or on the hub, in float32, frozen.

    Raises:
        InputError: it is missing, cannot be loaded, or is no vision transformer.
    """
    from transformers import AutoModel

    folder = locate(reference, download=True)
    # This raises before gigabytes are loaded.
    vision_sizes(reference)
    preprocessor = read_json(
        folder / "preprocessor_config.json", "put the model's own preprocessor_config.json there"
    )
    kinds = (OSError, ValueError, RuntimeError, KeyError)
    with Refusal(*kinds, what="the vision model cannot be loaded", where=folder, do=_DO):
        # No code from a hub, no pickle.
        with hushed("transformers"):
            model = AutoModel.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        return Vision(
            model.eval().requires_grad_(False),
            preprocessor["image_mean"],
            preprocessor["image_std"],
            device,
        )
