"""Images to latents and back, by a diffusers AutoencoderKL in a local folder or on the hub.

Three spaces, kept apart by name: image in [-1, 1]; raw latent, what the network gives; latent, the raw one brought to
mean 0 and standard deviation 1 with the autoencoder's own statistics, which is what the denoiser sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hdm.errors import InputError
from hdm.models.components import locate, read_json

# Per-channel statistics published for autoencoders whose configuration has none (arXiv 2509.06068 for this one).
PUBLISHED_STATISTICS = {
    "KBlueLeaf/EQ-SDXL-VAE": ([-3.8660, -1.3354, 0.8354, 0.9099], [10.0365, 6.8484, 7.2138, 5.5913]),
}


class Autoencoder:
    """An AutoencoderKL with its statistics.

    Attributes:
        channels: of a latent.
        downscale: image pixels a latent pixel, each way.
        identity: class, scale and shift by channel: latent = (raw latent - shift) · scale.
    """

    def __init__(self, model: Any, shift: list[float], scale: list[float], device: str) -> None:
        self.model, self.device = model, torch.device(device)
        self.channels: int = model.config.latent_channels
        self.downscale: int = 2 ** (len(model.config.block_out_channels) - 1)
        self.identity = {"class": type(model).__name__, "scale": scale, "shift": shift}
        self._shift = torch.tensor(shift, device=self.device).view(1, -1, 1, 1)
        self._scale = torch.tensor(scale, device=self.device).view(1, -1, 1, 1)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """The mean of the posterior; no draw.

        Args:
            image: (B, 3, H, W) in [-1, 1]; H and W multiples of `downscale`.

        Returns:
            Raw latent (B, C, H / downscale, W / downscale), float32.
        """
        if image.shape[-1] % self.downscale or image.shape[-2] % self.downscale:
            raise ValueError(f"image of {image.shape[-1]}x{image.shape[-2]} px: sides have to be multiples of {self.downscale}")
        return self.model.encode(image.to(self.device, torch.float32)).latent_dist.mode()

    @torch.no_grad()
    def decode(self, raw: Tensor) -> Tensor:
        """The image of a raw latent (B, C, h, w): (B, 3, h · downscale, w · downscale), clipped to [-1, 1]."""
        return self.model.decode(raw.to(self.device, torch.float32)).sample.clamp(-1, 1)

    def normalize(self, raw: Tensor) -> Tensor:
        """Raw latent to latent: mean 0 and standard deviation 1 by channel."""
        return (raw.to(self.device) - self._shift) * self._scale

    def denormalize(self, latent: Tensor) -> Tensor:
        """Latent to raw latent."""
        return latent.to(self.device) / self._scale + self._shift


def load_autoencoder(reference: str, device: str = "cpu") -> Autoencoder:
    """The autoencoder in a local folder (config.json, diffusion_pytorch_model.safetensors) or on the hub, in float32.

    Raises:
        InputError: it is missing, of another class, or its statistics do not fit its channels.
    """
    from diffusers import AutoencoderKL

    folder = locate(reference, download=True)
    config = read_json(folder / "config.json", do="name a folder with a diffusers autoencoder")
    if config.get("_class_name") != "AutoencoderKL":
        raise InputError(
            f"is of class {config.get('_class_name')}, not AutoencoderKL",
            where=folder,
            do="name another in components.autoencoder",
        )
    shift, scale = _statistics({**config, **published_statistics(reference, config)}, folder)
    try:
        model = AutoencoderKL.from_pretrained(str(folder), use_safetensors=True, torch_dtype=torch.float32, local_files_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"the autoencoder cannot be loaded: {error}", where=folder, do="fetch or write it again") from error
    return Autoencoder(model.to(device).eval().requires_grad_(False), shift, scale, device)


def of_model(model: Any, device: torch.device | str) -> Autoencoder:
    """An AutoencoderKL that is loaded already.

    Args:
        model: in whatever dtype.
        device: where it will be when it computes.

    Raises:
        InputError: its statistics do not fit its channels.
    """
    shift, scale = _statistics(dict(model.config), type(model).__name__)
    return Autoencoder(model, shift, scale, str(device))


def published_statistics(reference: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """`latents_mean` and `latents_std` where they are known of an autoencoder whose configuration lacks them; else nothing."""
    known = PUBLISHED_STATISTICS.get(reference.partition("@")[0])
    return {} if known is None or config.get("latents_mean") else {"latents_mean": known[0], "latents_std": known[1]}


def _statistics(config: dict[str, Any], folder: object) -> tuple[list[float], list[float]]:
    """Shift and scale by channel.

    Statistics by channel give latents of standard deviation 1 and win over `scaling_factor`, which diffusers fills in
    by default and which says the same of all channels at once.
    """
    channels = config["latent_channels"]
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean and std:
        shift, scale = [float(value) for value in mean], [1 / float(value) for value in std]
    else:
        shift = [float(config.get("shift_factor") or 0.0)] * channels
        scale = [float(config.get("scaling_factor") or 1.0)] * channels
    if len(shift) != channels or len(scale) != channels:
        raise InputError(
            f"has {channels} latent channels but statistics of {len(shift)} (mean) and {len(scale)} (std)",
            where=folder,
            do="correct latents_mean and latents_std in its config.json",
        )
    return shift, scale
