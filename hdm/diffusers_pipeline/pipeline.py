"""From prompts to pictures with diffusers' calling conventions, by our own sampler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hdm.diffusers_pipeline.denoiser import XUTTransformer
from hdm.diffusion.guidance import Text
from hdm.diffusion.sampler import OnStep, Sampling, Seed, Solver, generate
from hdm.errors import InputError
from hdm.generation.conditioning import encode_prompts
from hdm.kernels import install
from hdm.models.autoencoder import Autoencoder, of_model
from hdm.models.text_encoder import TextEncoder, Tokenizer
from hdm.pixels import to_pixels
from hdm.positions import Camera

Generators = torch.Generator | Sequence[torch.Generator] | None
OnStepEnd = Callable[["HDMPipeline", int, float, dict[str, Tensor]], dict[str, Tensor] | None]
OutputType = Literal["pil", "np", "pt", "latent"]


class HDMPipeline(DiffusionPipeline):
    """Text to image with XUT.

    Args:
        transformer: the denoiser. On the CPU it gets kernels; `hdm.kernels.remove` takes them away.
        vae: the autoencoder of its latents; latents_mean and latents_std of its configuration
            normalise them.
        text_encoder: a language model; its last hidden state is read.
        tokenizer: of the text encoder.
        max_tokens: prompts are cut to so many.
        resolution: side of a picture in pixels where none is asked for.
    """

    # What the registered arguments and diffusers' own classes make of themselves.
    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    config: Any
    _execution_device: torch.device

    model_cpu_offload_seq: Any = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012  (diffusers' own kind of declaration)

    def __init__(
        self,
        transformer: XUTTransformer,
        vae: AutoencoderKL,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int = 256,
        resolution: int = 1024,
    ) -> None:
        super().__init__()
        self.register_modules(  # type: ignore[no-untyped-call]
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(  # type: ignore[no-untyped-call]
            max_tokens=max_tokens, resolution=resolution
        )
        # diffusers leaves a component out where it is asked to.
        if transformer is not None:
            install(transformer)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 16,
        guidance_scale: float = 3.0,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        solver: Solver = "euler",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        tread_rates: tuple[float, float] = (0.0, 0.0),
        shift: float = 1.0,
        camera: Camera | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make pictures, all in one batch, num_images_per_prompt of each prompt in turn.

        Args:
            prompt: one or several.
            negative_prompt: what guidance leads away from, one for all or one a prompt; None or ""
                is the empty caption of training.
            height, width: in pixels; None: `resolution`.
            num_inference_steps, guidance_scale, solver, guidance_interval, tread_rates, shift: see
                `sampler.Sampling`.
            generator: of the noise, one for all, which they draw from in turn, or one a picture;
                None: torch's own.
            output_type: pil; np, (B, H, W, 3) in [0, 1]; pt, (B, 3, H, W) in [0, 1]; latent,
                normalised.
            return_dict: False gives a tuple.
            callback_on_step_end: called with (pipeline, step from 0, time then reached (0 is done),
                {"latents": …}); may return {"latents": …} to go on from.
            camera: shift and zoom of the frame; None: the whole picture.

        Returns:
            `images`.

        Raises:
            InputError: sizes or counts do not fit, or an argument is out of its range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = (
            [negative_prompt or ""]
            if negative_prompt is None or isinstance(negative_prompt, str)
            else list(negative_prompt)
        )
        height = height or self.config.resolution
        width = width or self.config.resolution
        sampling = Sampling(
            num_inference_steps, solver, guidance_scale, guidance_interval, tread_rates, shift
        )
        self._check(
            len(prompts),
            len(negatives),
            height,
            width,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        with self._precision(), self.progress_bar(total=num_inference_steps) as bar:
            text, negative = self._texts(prompts, negatives, num_images_per_prompt)
            latent = generate(
                self.transformer,
                text,
                negative,
                height=height // self.vae_scale_factor,
                width=width // self.vae_scale_factor,
                seeds=_seeds(generator, len(text.embedding)),
                sampling=sampling,
                camera=camera,
                on_step=self._on_step(callback_on_step_end, sampling, bar),
            )
            images: Any = (
                latent if output_type == "latent" else _converted(self._decode(latent), output_type)
            )
        # With offloading, this moves the last model off the accelerator.
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def vae_scale_factor(self) -> int:
        """Image pixels a latent pixel, each way."""
        return self._autoencoder().downscale

    def _autoencoder(self) -> Autoencoder:
        # Offloading moves the model while the pipeline runs, so the wrapper is made at each use.
        return of_model(self.vae, self._execution_device)

    def _texts(self, prompts: list[str], negatives: list[str], count: int) -> tuple[Text, Text]:
        """Texts of the prompts, each `count` times, and of the negative prompts; encoded together,
        so that all are padded alike.
        """
        encoder = TextEncoder(
            self.text_encoder, self.text_encoder.config.get_text_config().hidden_size
        )
        embedding, mask = encode_prompts(
            Tokenizer(self.tokenizer), encoder, [*prompts, *negatives], self.config.max_tokens
        )
        assert mask is not None
        # An offloaded text encoder leaves its output where it ran.
        texts = Text(embedding.to(self._execution_device), mask.to(self._execution_device))
        of_prompts = [row for row in range(len(prompts)) for _ in range(count)]
        of_negatives = (
            [len(prompts)] if len(negatives) == 1 else [len(prompts) + row for row in of_prompts]
        )
        return texts.rows(of_prompts), texts.rows(of_negatives)

    def _decode(self, latent: Tensor) -> Tensor:
        """Images one by one, since at high resolution the autoencoder takes much memory."""
        autoencoder = self._autoencoder()
        raw = autoencoder.denormalize(latent)
        return torch.cat([autoencoder.decode(one[None]) for one in raw])

    def _on_step(self, callback: OnStepEnd | None, sampling: Sampling, bar: Any) -> OnStep:
        times = sampling.times().tolist()

        def on_step(done: int, latent: Tensor) -> Tensor | None:
            bar.update()
            if callback is None:
                return None
            return (callback(self, done - 1, times[done], {"latents": latent}) or {}).get("latents")

        return on_step

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Weights of 16 bits are computed with as in training: products in 16 bits, norms and sums
        in 32.
        """
        half = [
            module.dtype
            for module in (self.transformer, self.vae)
            if module.dtype in (torch.float16, torch.bfloat16)
        ]
        return (
            torch.autocast(self._execution_device.type, half[0])
            if half
            else contextlib.nullcontext()
        )

    def _check(
        self,
        prompts: int,
        negatives: int,
        height: int,
        width: int,
        output_type: str,
        tensors: Sequence[str],
    ) -> None:
        unit = self.vae_scale_factor * self.transformer.config.patch_size
        if height % unit or width % unit:
            raise InputError(
                f"{width}x{height} px cannot be cut into this model's patches of {unit} px",
                do=f"use multiples of {unit}",
            )
        if negatives not in (1, prompts):
            raise InputError(
                f"{prompts} prompts and {negatives} negative prompts",
                do="give one for all, or one a prompt",
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(
                f"no output type is called {output_type!r}", do="use pil, np, pt or latent"
            )
        if not set(tensors) <= set(self._callback_tensor_inputs):
            raise InputError(f"callbacks get {self._callback_tensor_inputs}, not {list(tensors)}")


def _seeds(generator: Generators, count: int) -> list[Seed]:
    if isinstance(generator, Sequence):
        return list(generator)
    # One generator draws for all pictures in turn, as diffusers' own pipelines do.
    return [torch.default_generator if generator is None else generator] * count


def _converted(image: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """Images (B, 3, H, W) in [-1, 1] as they were asked for."""
    if output_type == "pil":
        return [Image.fromarray(pixels) for pixels in to_pixels(image)]
    unit = (image.float() + 1) / 2
    return unit if output_type == "pt" else unit.cpu().permute(0, 2, 3, 1).numpy()
