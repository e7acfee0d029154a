"""Images to latents and back, with any of diffusers' image autoencoders, from a local folder or the
hub.

Three spaces are distinguished by name: image, in [-1, 1]; raw latent, the network's output; latent,
the raw latent normalised to mean 0 and standard deviation 1 with the autoencoder's own statistics,
which is the denoiser's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdm.architecture import XUTConfig
from hdm.errors import ConfigError, InputError, Refusal
from hdm.models.components import FETCH_AGAIN, hushed, locate, read_json, resolve
from hdm.models.settings import WithAutoencoder
from hdm.models.small_autoencoder import DOWNSCALE as SMALL_DOWNSCALE
from hdm.models.tiling import tiled

# Per-channel statistics published for autoencoders whose configuration has none (arXiv 2509.06068
# for this one).
PUBLISHED_STATISTICS = {
    "KBlueLeaf/EQ-SDXL-VAE": (
        [-3.8660, -1.3354, 0.8354, 0.9099],
        [10.0365, 6.8484, 7.2138, 5.5913],
    ),
}
# A config.json names its class, and only these classes are looked up in diffusers.
POOLED = "PooledAutoencoderTiny"  # ours
CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderDC", "AutoencoderTiny", POOLED)
CONFIG = "config.json"
OVERLAP = 0.25  # of a tile's side
MIN_TILE = 4  # latent pixels, so that the overlap is one at least


class Autoencoder:
    """An autoencoder with its statistics.

    Args:
        model: a diffusers autoencoder, as `load_autoencoder` finds it.
        shift, scale: by channel: latent = (raw latent - shift) · scale.
        device: where it runs.

    Attributes:
        channels: of a latent.
        downscale: image pixels per latent pixel, on each axis. identity: class, scale and shift.
    """

    def __init__(self, model: Any, shift: list[float], scale: list[float], device: str) -> None:
        self.model = model
        self.device = torch.device(device)
        self.channels: int = model.config.latent_channels
        downscale = _downscale(model.config)
        assert downscale is not None, "diffusers fills in what a file leaves out"
        self.downscale = downscale
        self.identity = {"class": type(model).__name__, "scale": scale, "shift": shift}
        self._shift = torch.tensor(shift, device=self.device).view(1, -1, 1, 1)
        self._scale = torch.tensor(scale, device=self.device).view(1, -1, 1, 1)

    @property
    def shape(self) -> LatentShape:
        """Of its latents."""
        return LatentShape(type(self.model).__name__, self.channels, self.downscale)

    @torch.no_grad()
    def encode(
        self, image: Tensor, generator: torch.Generator | None = None, tile_px: int | None = None
    ) -> Tensor:
        """The posterior's mean or a sample from it; autoencoders without a posterior give the same
        latent either way.

        Args:
            image: (B, 3, H, W) in [-1, 1]; H and W multiples of `downscale`.
            generator: samples the posterior, on the autoencoder's device; None: the mean.
            tile_px: larger pictures are encoded in overlapping tiles of this side, to save memory;
                None: whole.

        Returns:
            Raw latent (B, C, H / downscale, W / downscale), float32.
        """
        if image.shape[-1] % self.downscale or image.shape[-2] % self.downscale:
            raise ValueError(
                f"image of {image.shape[-1]}x{image.shape[-2]} px: sides have to be multiples of"
                f" {self.downscale}"
            )

        def whole(part: Tensor) -> Tensor:
            return raw_latent(self.model.encode(part), generator)

        # In float32 a picture's latent hardly depends on its batch: 8 together differ from 1 and 3
        # by at most 7·10⁻⁷ of the largest value (bench/RESULTS.md).
        image = image.to(self.device, torch.float32)
        if tile_px is None:
            return whole(image)
        tile = self._tile(tile_px)
        return tiled(whole, image, tile, int(tile * OVERLAP), self.downscale, 1)

    @torch.no_grad()
    def decode(self, raw: Tensor, tile_px: int | None = None) -> Tensor:
        """Decode a raw latent (B, C, h, w) to (B, 3, h · downscale, w · downscale), clipped to [-1,
        1].

        Args:
            tile_px: as for `encode`.
        """
        if raw.shape[1] != self.channels:
            raise InputError(
                f"the latents have {raw.shape[1]} channels, the autoencoder"
                f" {type(self.model).__name__} {self.channels}",
                do="name the autoencoder that made them",
            )

        def whole(part: Tensor) -> Tensor:
            decoded: Tensor = self.model.decode(part).sample
            return decoded.contiguous()

        raw = raw.to(self.device, torch.float32)
        if tile_px is None:
            # Decoders give values a little beyond [-1, 1].
            return whole(raw).clamp(-1, 1)
        tile = self._tile(tile_px)
        return tiled(whole, raw, tile, int(tile * OVERLAP), 1, self.downscale).clamp(-1, 1)

    def normalize(self, raw: Tensor) -> Tensor:
        """Raw latent to latent, with mean 0 and standard deviation 1 per channel."""
        return (raw.to(self.device) - self._shift) * self._scale

    def denormalize(self, latent: Tensor) -> Tensor:
        """Latent to raw latent."""
        return latent.to(self.device) / self._scale + self._shift

    def _tile(self, tile_px: int) -> int:
        self.shape.check_tile(tile_px)
        return tile_px // self.downscale


@dataclass(frozen=True)
class LatentShape:
    """The shape of an autoencoder's latents.

    Args:
        name: of the autoencoder, for errors.
        channels: of a latent.
        downscale: image pixels a latent pixel, each way.
    """

    name: str
    channels: int
    downscale: int

    def check_channels(self, model: XUTConfig) -> None:
        """Raise a ConfigError if a denoiser expects another number of channels."""
        if self.channels != model.channels:
            raise ConfigError(
                f"the autoencoder {self.name} has {self.channels} latent channels, the model takes"
                f" {model.channels}",
                where="train.model.channels",
                do=(
                    f"set train.model.channels={self.channels}, or name another"
                    " components.autoencoder"
                ),
            )

    def check_tile(self, tile_px: int) -> None:
        """Raise an InputError if tiles are too small to overlap."""
        if tile_px < MIN_TILE * self.downscale:
            raise InputError(
                f"tiles of {tile_px} px are too small",
                do=f"use {MIN_TILE * self.downscale} or more; 512 is usual",
            )


def latent_shape(reference: str) -> LatentShape | None:
    """The shape of an autoencoder's latents from its configuration alone; None if it does not
    record it.

    Raises:
        InputError: it is not on this machine, has no configuration, or is of an unknown class.
    """
    folder = locate(reference)
    published = _is_published(folder)
    # Only the weights tell the channels then, and a preflight does not load them.
    if published and not (folder / CONFIG).exists():
        return None
    config = read_json(folder / CONFIG, do="name a folder with a diffusers autoencoder")
    if not published:
        _check_class(config, folder)
    channels = config.get("latent_channels")
    downscale = _downscale(config)
    if not isinstance(channels, int) or downscale is None:
        return None
    return LatentShape(reference, channels, downscale)


def pipeline_latent_shape(pipeline: WithAutoencoder) -> LatentShape | None:
    """The shape of the latents that a pipeline's denoiser sees, also if the pipeline trains its
    autoencoder itself.

    Raises:
        InputError: as `latent_shape`, or the pipeline names no autoencoder.
    """
    if pipeline.own_channels is not None:
        # The autoencoder does not exist yet, so its sizes come from the settings.
        return LatentShape("of vae.scratch", pipeline.own_channels, SMALL_DOWNSCALE)
    return latent_shape(resolve(pipeline.components).need("autoencoder"))


def _downscale(config: Mapping[str, Any]) -> int | None:
    # Every stage but the first, or but the last, halves.
    for name in ("num_encoder_blocks", "encoder_block_out_channels", "block_out_channels"):
        if name in config:
            downscale: int = 2 ** (len(config[name]) - 1)
            return downscale
    return None


def raw_latent(encoded: Any, generator: torch.Generator | None) -> Tensor:
    """Extract the latent from the output of a diffusers encoder, whose field depends on the class:
    the posterior's mean or, with a generator, a sample.
    """
    # AutoencoderKL returns a posterior, AutoencoderTiny `latents`, AutoencoderDC `latent`.
    if hasattr(encoded, "latent_dist"):
        posterior = encoded.latent_dist
        latent: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
    else:
        latent = encoded.latent if hasattr(encoded, "latent") else encoded.latents
    return latent.contiguous()  # files and losses expect rows of pixels


def load_autoencoder(reference: str, device: str = "cpu") -> Autoencoder:
    """Load an autoencoder from a local folder or the hub, in float32: diffusers' format, or a tiny
    autoencoder's published files.

    Raises:
        InputError: it is missing, of an unknown class, or its statistics do not fit its channels.
    """
    folder = locate(reference, download=True)
    config: dict[str, Any] = {}
    published = _is_published(folder)
    if not published or (folder / CONFIG).exists():
        config = read_json(folder / CONFIG, do="name a folder with a diffusers autoencoder")
    model = _from_published(folder) if published else _from_diffusers(folder, config)
    # What the file says, not what diffusers fills in: a scale of 0.18 where there is none.
    known = {"latent_channels": model.config.latent_channels, **_of_batch_norm(model), **config}
    shift, scale = _statistics({**known, **published_statistics(reference, known)}, folder)
    model = model.to(device).eval().requires_grad_(False)
    if torch.device(device).type == "cpu":
        # oneDNN computes convolutions of this layout in 0.7 to 1.0 of the time
        # (bench/RESULTS.md). Pictures and latents follow the weights' layout by themselves.
        model = model.to(memory_format=torch.channels_last)
    return Autoencoder(model, shift, scale, device)


def _is_published(folder: Path) -> bool:
    """Whether a folder holds a tiny autoencoder, as two .pth files or as a single .safetensors
    file.
    """
    pair = all(len(list(folder.glob(f"*_{part}.pth"))) == 1 for part in ("encoder", "decoder"))
    return pair or _single_file(folder) is not None


def _single_file(folder: Path) -> Path | None:
    """The .safetensors file of a folder that has only one and no config.json; else None."""
    files = list(folder.glob("*.safetensors"))
    return files[0] if len(files) == 1 and not (folder / CONFIG).exists() else None


def _check_class(config: Mapping[str, Any], folder: Path) -> None:
    name = config.get("_class_name")
    if name not in CLASSES:
        raise InputError(
            f"is of class {name}, not one of {', '.join(CLASSES)}",
            where=folder,
            do="name another in components.autoencoder",
        )


def _from_published(folder: Path) -> Any:
    from hdm.models.tiny_autoencoder import load_published  # imports diffusers: seconds

    return load_published(folder, _single_file(folder))


def _from_diffusers(folder: Path, config: dict[str, Any]) -> Any:
    import diffusers

    _check_class(config, folder)
    name = config["_class_name"]
    if name == POOLED:
        from hdm.models.tiny_autoencoder import load_pooled

        return load_pooled(folder, config)
    kinds = (OSError, RuntimeError, ValueError)
    what = "the autoencoder cannot be loaded"
    # `_check_class` holds the class's name, which comes from a file, to a list. Pickles are
    # refused.
    with Refusal(*kinds, what=what, where=folder, do=FETCH_AGAIN), hushed("diffusers"):
        return getattr(diffusers, name).from_pretrained(
            str(folder), use_safetensors=True, torch_dtype=torch.float32, local_files_only=True
        )


def _of_batch_norm(model: Any) -> dict[str, Any]:
    """FLUX.2 keeps the statistics of its latents' 2×2 patches in a batch norm; a channel's
    statistics are those of its four positions.
    """
    norm = getattr(model, "bn", None)
    if norm is None:
        return {}
    channels = model.config.latent_channels
    mean = norm.running_mean.double().view(channels, -1)
    variance = norm.running_var.double().view(channels, -1)
    # The variance over the four positions is the mean square less the square of the mean.
    whole = (variance + mean.square()).mean(1) - mean.mean(1).square()
    return {
        "latents_mean": mean.mean(1).tolist(),
        "latents_std": (whole + norm.eps).sqrt().tolist(),
    }


def of_model(model: Any, device: torch.device | str) -> Autoencoder:
    """Wrap a loaded autoencoder.

    Args:
        model: in any dtype.
        device: where it will be when it computes.

    Raises:
        InputError: its statistics do not fit its channels.
    """
    shift, scale = _statistics({**model.config, **_of_batch_norm(model)}, type(model).__name__)
    return Autoencoder(model, shift, scale, str(device))


def published_statistics(reference: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Known `latents_mean` and `latents_std` of an autoencoder whose configuration lacks them; {}
    if unknown.
    """
    # The revision does not matter.
    known = PUBLISHED_STATISTICS.get(reference.partition("@")[0])
    return (
        {}
        if known is None or config.get("latents_mean")
        else {"latents_mean": known[0], "latents_std": known[1]}
    )


def _statistics(config: dict[str, Any], folder: object) -> tuple[list[float], list[float]]:
    """Shift and scale per channel.

    Per-channel statistics give latents of standard deviation 1. They take precedence over
    `scaling_factor`, which diffusers fills in by default and which is the same for all channels.
    """
    channels = config["latent_channels"]
    mean = config.get("latents_mean")
    std = config.get("latents_std")
    if mean and std:
        shift = [float(value) for value in mean]
        scale = [1 / float(value) for value in std]
    else:
        shift = [float(config.get("shift_factor") or 0.0)] * channels
        scale = [float(config.get("scaling_factor") or 1.0)] * channels
    if len(shift) != channels or len(scale) != channels:
        raise InputError(
            f"has {channels} latent channels but statistics of {len(shift)} (mean) and {len(scale)}"
            " (std)",
            where=folder,
            do="correct latents_mean and latents_std in its config.json",
        )
    return shift, scale
