"""A small AutoencoderKL, trained to be smooth: 8 × downscale, fully convolutional, latents that commute with scaling and turning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdm.bootstrap.optimizing import Trainer, halve
from hdm.bootstrap.pictures import as_image, crops, resized
from hdm.data.examples import Example
from hdm.models.autoencoder import Autoencoder
from hdm.models.equivariance import Transform
from hdm.progress import track

CHANNELS = 8
WIDTHS = (16, 16, 32, 64)
BATCH = 8
LEARNING_RATE = 2e-3
MUON_RATE = 3e-3
EDGE_WEIGHT = 0.25
KL_WEIGHT = 1e-4
START_LOG_VARIANCE = -6.0
NOISE = 0.4  # of the latents' standard deviation, at most
EQUIVARIANT = 0.25  # share of steps that decode a scaled and turned latent
SCALES = (0.5, 0.75)


def new_autoencoder(channels: int = CHANNELS, widths: tuple[int, ...] = WIDTHS) -> Any:
    """An untrained AutoencoderKL; no attention, so that it takes any size."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train_autoencoder(examples: tuple[Example, ...], num_images: int, size_px: int, seed: int, channels: int = CHANNELS) -> Any:
    """An autoencoder with its statistics in its configuration.

    Args:
        examples: pictures; captions are not used.
        num_images: images seen, repetitions counted.
        size_px: crops have this side, or three quarters of it.
        seed: of weights, crops and draws.
        channels: of a latent.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = new_autoencoder(channels).to(memory_format=torch.channels_last)
    with torch.no_grad():  # start with a nearly sure posterior: noise of size 1 would drown the first thousand steps
        model.encoder.conv_out.bias[channels:] = START_LOG_VARIANCE
    steps = max(1, num_images // BATCH)
    trainer = Trainer(model, steps, LEARNING_RATE, MUON_RATE)
    batches = crops(examples, _sizes(size_px), BATCH, rng)
    with track("autoencoder", steps * BATCH, "images") as bar:
        for step in range(steps):
            loss, shown = _loss(model, next(batches).to(memory_format=torch.channels_last), rng)
            trainer.step(step, loss)
            bar.advance(BATCH, f"L1 {shown:.4f}")
    mean, std = _statistics(model.eval(), batches)
    model.register_to_config(latents_mean=mean, latents_std=std)
    return model.to(memory_format=torch.contiguous_format)


def _sizes(size_px: int) -> list[int]:
    return sorted({max(16, size // 8 * 8) for size in (size_px, size_px * 3 // 4)})


def _loss(model: Any, image: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
    """L1 of pixels and of their differences, a little KL, and equivariance (EQ-VAE, arXiv 2502.09509, eq. 3) in some steps."""
    posterior = model.encode(image).latent_dist
    raw, target = posterior.sample(), image
    # A decoder that forgives what the denoiser gets wrong (as latent denoising in arXiv 2507.15856).
    raw = raw + float(rng.uniform(0, NOISE)) * raw.detach().std((0, 2, 3), keepdim=True) * torch.randn_like(raw)
    if rng.random() < EQUIVARIANT:
        raw, target = Transform(float(rng.choice(SCALES)), int(rng.integers(4))).both(raw, image)
    decoded = model.decode(raw).sample
    l1 = (decoded - target).abs().mean()
    edges = sum((decoded.diff(dim=axis) - target.diff(dim=axis)).abs().mean() for axis in (2, 3))
    return l1 + EDGE_WEIGHT * edges + KL_WEIGHT * posterior.kl().mean() / raw[0].numel(), l1.item()


@torch.no_grad()
def _statistics(model: Any, batches: Iterator[Tensor], num_batches: int = 64) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the raw latents, by channel."""
    raw = [model.encode(next(batches)).latent_dist.mode().transpose(0, 1).flatten(1) for _ in range(num_batches)]
    whole = torch.cat(raw, dim=1).double()
    return ([round(value, 6) for value in values.tolist()] for values in (whole.mean(1), whole.std(1)))  # type: ignore[return-value]


def save_autoencoder(model: Any, folder: Path) -> None:
    """config.json and diffusion_pytorch_model.safetensors, weights in 16 bits."""
    halve(model).save_pretrained(folder)


def measure_autoencoder(autoencoder: Autoencoder, examples: Sequence[Example], size_px: int) -> dict[str, float]:
    """Mean PSNR (dB) of pictures that were kept out of training, in their middle square."""
    found = []
    for example in examples:
        pixels = resized(example.pixels, size_px)
        top, left = ((side - size_px) // 2 for side in pixels.shape[:2])
        image = as_image(pixels[None, top : top + size_px, left : left + size_px])
        error = (autoencoder.decode(autoencoder.encode(image)) - image).square().mean().item() / 4
        found.append(-10 * np.log10(max(error, 1e-10)))
    return {"psnr_db": round(float(np.mean(found)), 2)}
