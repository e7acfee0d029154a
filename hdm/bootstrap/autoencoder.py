"""A small AutoencoderKL, trained to be smooth: 8 × downscale, fully convolutional, latents that commute with scaling and turning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdm.bootstrap.optimizing import Trainer, halve
from hdm.bootstrap.pictures import crops
from hdm.data.crops import as_image, middle_square
from hdm.data.examples import Example
from hdm.models.autoencoder import Autoencoder
from hdm.models.equivariance import Transform
from hdm.models.small_autoencoder import CHANNELS, new_autoencoder
from hdm.progress import track
from hdm.vae.losses import edge_difference
from hdm.vae.normalization import write_statistics
from hdm.vae.quality import psnr

BATCH = 8
LEARNING_RATE = 2e-3
MUON_RATE = 3e-3
EDGE_WEIGHT = 0.25
KL_WEIGHT = 1e-4
NOISE = 0.4  # of the latents' standard deviation, at most
EQUIVARIANT = 0.25  # share of steps that decode a scaled and turned latent
SCALES = (0.5, 0.75)
STATISTICS_BATCHES = 64


def train_autoencoder(
    examples: tuple[Example, ...],
    num_images: int,
    size_px: int,
    seed: int,
    channels: int = CHANNELS,
) -> Any:
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
    steps = max(1, num_images // BATCH)
    trainer = Trainer(model, steps, LEARNING_RATE, MUON_RATE)
    batches = crops(examples, _sizes(size_px), BATCH, rng)
    with track("autoencoder", steps * BATCH, "images") as bar:
        for step in range(steps):
            loss, shown = _loss(model, next(batches).to(memory_format=torch.channels_last), rng)
            trainer.step(step, loss)
            bar.advance(BATCH, f"L1 {shown:.4f}")
    model.eval()
    with torch.no_grad():
        write_statistics(
            model,
            [model.encode(next(batches)).latent_dist.mode() for _ in range(STATISTICS_BATCHES)],
        )
    return model.to(memory_format=torch.contiguous_format)


def _sizes(size_px: int) -> list[int]:
    return sorted({max(16, size // 8 * 8) for size in (size_px, size_px * 3 // 4)})


def _loss(model: Any, image: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
    """L1 of pixels and of their differences, a little KL, and equivariance (EQ-VAE, arXiv 2502.09509, eq. 3) in some steps."""
    posterior = model.encode(image).latent_dist
    raw, target = posterior.sample(), image
    # A decoder that forgives what the denoiser gets wrong (as latent denoising in arXiv 2507.15856).
    raw = raw + float(rng.uniform(0, NOISE)) * raw.detach().std(
        (0, 2, 3), keepdim=True
    ) * torch.randn_like(raw)
    if rng.random() < EQUIVARIANT:
        raw, target = Transform(float(rng.choice(SCALES)), int(rng.integers(4))).both(raw, image)
    decoded = model.decode(raw).sample
    l1 = (decoded - target).abs().mean()
    return l1 + EDGE_WEIGHT * edge_difference(
        decoded, target
    ) + KL_WEIGHT * posterior.kl().mean() / raw[0].numel(), l1.item()


def save_autoencoder(model: Any, folder: Path) -> None:
    """config.json and diffusion_pytorch_model.safetensors, weights in 16 bits."""
    halve(model).save_pretrained(folder)


def measure_autoencoder(
    autoencoder: Autoencoder, examples: Sequence[Example], size_px: int
) -> dict[str, float]:
    """Mean PSNR (dB) of pictures that were kept out of training, in their middle square."""
    found = []
    for example in examples:
        image = as_image(middle_square(example.pixels, size_px)[None])
        found.append(psnr(autoencoder.decode(autoencoder.encode(image)), image).item())
    return {"psnr_db": round(float(np.mean(found)), 2)}
