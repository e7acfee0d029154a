"""How an autoencoder is fine-tuned."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import field_validator

from hdm import values
from hdm.models.settings import WithAutoencoder
from hdm.pictures.settings import WithImages
from hdm.settings import Settings, runtime
from hdm.training.settings import Optimizer
from hdm.values import Within


class VaeSettings(Settings):
    """How an autoencoder is fine-tuned, or trained from scratch."""

    scratch: bool = False
    """Start from a new small AutoencoderKL, 8 × downscale, instead of an existing autoencoder."""
    channels: values.Few = 8
    """Channels of a latent, from scratch."""
    num_images: values.Count = 24_000
    """Images seen, repetitions counted."""
    batch_size: values.Batch = 8
    """Images a step."""
    size_px: Annotated[int, Within(16, 16_384)] = 64
    """Side of the square crops; pictures are brought to it by their shorter side."""
    reconstruction: Literal["l1", "l2"] = "l1"
    edge_weight: values.Weight = 0.25
    """Weight of the same difference between neighbouring pixels' differences."""
    perceptual_weight: values.Weight = 0.0
    """Weight of LPIPS with VGG16 (arXiv 1801.03924), which needs torchmetrics and VGG16's weights
    in torch's cache. 0: off.
    """
    kl_weight: values.Weight = 1e-4
    """Weight of the posterior's divergence from a standard normal distribution, averaged over
    latent values; used if the autoencoder has a posterior.
    """
    equivariance_weight: values.Weight = 1.0
    """Weight of EQ-VAE's term (arXiv 2502.09509): a scaled and turned latent has to decode to the
    picture scaled and turned alike. 0: off.
    """
    scales: tuple[values.PositiveShare, values.PositiveShare] = (0.25, 1.0)
    """Range [low, high) of the factors by which latents are scaled."""
    optimizer: Optimizer = Optimizer(learning_rate=1e-4, weight_decay=0.0, warmup_images=800)
    """Here muon takes convolutions too."""
    ema_decay: values.Rate = 0.0
    """Decay of the weights' moving average, which then becomes the result; 0: the last weights."""
    seed: values.Seed = 0
    """Seed of new weights, crops and random draws."""
    num_measured: values.Count = 256
    """Number of pictures kept out of training on which quality is measured, before and after."""
    # Digests leave out the settings from here on, which change how training runs and not its
    # result.
    checkpoint_sec: values.Seconds = runtime(300.0)
    """Seconds between checkpoints."""
    device: values.Device = runtime("auto")
    """auto, cpu, cuda or one device such as cuda:1."""

    @field_validator("scales")
    @classmethod
    def _rising(cls, scales: tuple[float, float]) -> tuple[float, float]:
        if not scales[0] < scales[1]:
            raise ValueError("the first must be less than the second")
        return scales


class Pipeline(WithAutoencoder, WithImages, Protocol):
    """The part of a pipeline that this package reads."""

    @property
    def vae(self) -> VaeSettings | None: ...
