"""Train a small AutoencoderKL with a smooth latent space: downscale 8, fully convolutional, with
latents that commute with scaling and turning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdm.bootstrap.examples import Example
from hdm.bootstrap.learning import Place, Training, halve
from hdm.bootstrap.lessons import Crops
from hdm.bootstrap.pace import Schedule
from hdm.measuring import Measure
from hdm.models.autoencoder import Autoencoder
from hdm.models.equivariance import Transform
from hdm.models.small_autoencoder import CHANNELS, new_autoencoder
from hdm.pixels import to_image
from hdm.vae.losses import edge_difference
from hdm.vae.normalization import write_statistics
from hdm.vae.reconstruction import psnr
from hdm.vae.squares import middle_square

BATCH = 8
LEARNING_RATE = 2e-3
MUON_RATE = 3e-3
EDGE_WEIGHT = 0.25
KL_WEIGHT = 1e-4
NOISE = 0.4  # largest noise in units of the latents' standard deviation
EQUIVARIANT = 0.25  # share of steps that decode a scaled and turned latent
SCALES = (0.5, 0.75)
STATISTICS_BATCHES = 64
FEWEST_BATCHES = 8  # of statistics, even if time has run out
STATISTICS = "statistics"  # name of this part of the time
DRAWS = 1  # separates a step's random numbers from those of its crops


def train_autoencoder(
    examples: tuple[Example, ...],
    num_images: int,
    size_px: int,
    seed: int,
    place: Place,
    channels: int = CHANNELS,
) -> tuple[Any, Schedule]:
    """Train an autoencoder, with its statistics in its configuration, and return its schedule too.

    Args:
        examples: pictures; captions are not used.
        num_images: images seen, repetitions counted.
        size_px: crops have this side or three quarters of it.
        seed: of weights, crops and draws.
        place: where checkpoints are, and how long it may take.
        channels: of a latent.
    """
    torch.manual_seed(seed)
    model = new_autoencoder(channels).to(memory_format=torch.channels_last)
    training = Training(model, num_images, BATCH, LEARNING_RATE, MUON_RATE, place)
    crops = Crops(examples, _sizes(size_px), BATCH, seed)

    def loss(step: int) -> tuple[Tensor, str]:
        image = crops.batch(step).to(memory_format=torch.channels_last)
        value, l1 = _loss(model, image, np.random.default_rng((seed, step, DRAWS)))
        return value, f"L1 {l1:.4f}"

    schedule = training.run(loss, "autoencoder", "images")
    model.eval()
    # Crops that no training step has drawn: their numbers follow the last step's.
    first = schedule.num_steps
    with torch.no_grad(), place.budget.timed(STATISTICS):
        until = place.budget.until(STATISTICS)
        latents: list[Tensor] = []
        for number in range(first, first + STATISTICS_BATCHES):
            if until is not None and place.budget.now() > until and len(latents) >= FEWEST_BATCHES:
                break
            latents.append(model.encode(crops.batch(number)).latent_dist.mode())
        write_statistics(model, latents)
    return model.to(memory_format=torch.contiguous_format), schedule


def _sizes(size_px: int) -> list[int]:
    # Multiples of the downscale factor.
    return sorted({max(16, size // 8 * 8) for size in (size_px, size_px * 3 // 4)})


def _loss(model: Any, image: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
    """L1 of pixels and of their differences, a little KL, and in some steps equivariance (EQ-VAE,
    arXiv 2502.09509, eq. 3).
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    posterior = model.encode(image).latent_dist
    raw = posterior.sample(generator)
    target = image
    # Noise makes the decoder tolerate the denoiser's errors, as latent denoising does in arXiv
    # 2507.15856.
    deviation = raw.detach().std((0, 2, 3), keepdim=True)
    noise = torch.randn(raw.shape, generator=generator)
    raw = raw + float(rng.uniform(0, NOISE)) * deviation * noise
    if rng.random() < EQUIVARIANT:
        raw, target = Transform(float(rng.choice(SCALES)), int(rng.integers(4))).both(raw, image)
    decoded = model.decode(raw).sample
    l1 = (decoded - target).abs().mean()
    edges = edge_difference(decoded, target)
    # `kl()` sums over a latent; the mean over its values compares with the mean over pixels.
    kl = posterior.kl().mean() / raw[0].numel()
    return l1 + EDGE_WEIGHT * edges + KL_WEIGHT * kl, l1.item()


def save_autoencoder(model: Any, folder: Path) -> None:
    """Write config.json and diffusion_pytorch_model.safetensors with 16-bit weights."""
    halve(model).save_pretrained(folder)


class AutoencoderQuality(Measure):
    """Mean PSNR (dB) of the middle squares of pictures kept out of training."""

    def __init__(self, autoencoder: Autoencoder, examples: Sequence[Example], size_px: int) -> None:
        super().__init__(len(examples))
        self.autoencoder = autoencoder
        self.examples = examples
        self.size_px = size_px
        self.psnr_db: list[float] = []

    def add(self, items: Sequence[int]) -> None:
        for item in items:
            image = to_image(middle_square(self.examples[item].pixels, self.size_px)[None])
            decoded = self.autoencoder.decode(self.autoencoder.encode(image))
            self.psnr_db.append(psnr(decoded, image).item())

    def result(self) -> dict[str, Any]:
        return {"psnr_db": round(float(np.mean(self.psnr_db)), 2)}
