"""From prompts to pictures: text encoder, denoiser and autoencoder that fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hdm.diffusion.sampler import OnStep, Sampling, generate
from hdm.errors import InputError
from hdm.generation.conditioning import Conditioning
from hdm.generation.picture_files import check_sides
from hdm.kernels import install
from hdm.models.autoencoder import Autoencoder
from hdm.models.denoiser import Denoiser
from hdm.models.devices import Batches
from hdm.pixels import to_pixels
from hdm.positions import Camera


@dataclass(eq=False)
class TextToImage:
    """Makes pictures of prompts.

    Args:
        denoiser: in evaluation mode, on the conditioning's device. On the CPU it gets kernels.
        conditioning: of the prompts.
        autoencoder: the one that made the latents which the denoiser was trained on, on the same
            device.
        decode_batch: latents decoded at once; None: as many as were generated at once, which at
            high resolution takes much memory.

    Raises:
        InputError: they do not fit each other.
    """

    denoiser: Denoiser
    conditioning: Conditioning
    autoencoder: Autoencoder
    decode_batch: int | None = None

    def __post_init__(self) -> None:
        channels = self.autoencoder.channels
        config = self.denoiser.config
        width = self.conditioning.encoder.width
        if channels != config.channels:
            raise InputError(
                f"the autoencoder has {channels} channels, the model {config.channels}",
                do="name the autoencoder that the model was trained with",
            )
        if width != config.text_width:
            raise InputError(
                f"the text encoder's embeddings are {width} wide, the model reads"
                f" {config.text_width}",
                do="name the text encoder that the model was trained with",
            )
        # Kernels skip modules that were wrapped or hooked before, so this comes last.
        install(self.denoiser)

    @property
    def unit_px(self) -> int:
        """Sides of pictures are multiples of so many pixels: a patch of latent pixels."""
        return self.autoencoder.downscale * self.denoiser.config.patch_size

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        width: int,
        height: int,
        seeds: Sequence[int],
        batches: Batches,
        negative_prompts: Sequence[str] = ("",),
        sampling: Sampling | None = None,
        camera: Camera | None = None,
        on_step: OnStep | None = None,
    ) -> list[np.ndarray]:
        """Pictures (height, width, 3) uint8, one a prompt, in order.

        Texts are padded to the longest of those given here. Where the model attends to padding
        (`text_mask` padded), a picture depends on that length: prompts that are not to depend on
        each other then go in calls of their own.

        Args:
            prompts: what to show.
            width, height: of the pictures in pixels, multiples of `unit_px`.
            seeds: one a prompt; a picture depends on its own alone.
            batches: how many at once.
            negative_prompts: what guidance leads away from, one for all or one a prompt; "" is the
                empty caption of training.
            sampling, camera, on_step: see `sampler.generate`; steps are those of each batch.

        Raises:
            InputError: counts or sizes do not fit.
            DoesNotFitError: one picture does not fit in memory.
        """
        self._check_size(width, height)
        count = len(prompts)
        if len(seeds) != count or len(negative_prompts) not in (1, count):
            raise InputError(
                f"{count} prompts, {len(seeds)} seeds and {len(negative_prompts)} negative prompts",
                do="give a seed a prompt, and one negative prompt for all or one a prompt",
            )
        # Encoded together, so that all are padded alike.
        texts = self.conditioning.of_prompts([*prompts, *negative_prompts])
        # Negative prompts follow the prompts.
        negative = texts.rows(slice(count, None))

        def work(numbers: Sequence[int]) -> list[np.ndarray]:
            latent = generate(
                self.denoiser,
                texts.rows(numbers),
                negative if len(negative_prompts) == 1 else negative.rows(numbers),
                height=height // self.autoencoder.downscale,
                width=width // self.autoencoder.downscale,
                seeds=[seeds[number] for number in numbers],
                sampling=sampling,
                camera=camera,
                on_step=on_step,
            )
            return list(to_pixels(self._decode(latent)))

        made: list[np.ndarray] = []
        # A number stands for a prompt together with its seed and negative prompt.
        for _, pictures in batches.run(list(range(count)), work):
            made += pictures
        return made

    def _decode(self, latent: Tensor) -> Tensor:
        # The denoiser works on latents of mean 0 and deviation 1, the autoencoder on raw ones.
        raw = self.autoencoder.denormalize(latent)
        return torch.cat(
            # At high resolution, decoding takes much memory.
            [self.autoencoder.decode(part) for part in raw.split(self.decode_batch or len(raw))]
        )

    def _check_size(self, width: int, height: int) -> None:
        check_sides(width, height, self.unit_px)
