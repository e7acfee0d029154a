"""Generated images: from prompts to PNG files in tars, and back."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from hdm.config import Pipeline
from hdm.data.shards import TarShard
from hdm.data.tables import shard_name
from hdm.diffusion.sampler import Sampling, generate
from hdm.errors import ConfigError, InputError
from hdm.evaluation.prompts import PromptSet
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import resolve
from hdm.models.devices import Batches, choose_device
from hdm.progress import Tracker
from hdm.store import Draft, Output
from hdm.training.checkpoint import read_model
from hdm.training.conditioning import Conditioning

IMAGES_A_TAR = 64
GRID_COLUMNS, GRID_IMAGES, GRID_GAP_PX = 8, 64, 2


def image_size(pipeline: Pipeline) -> tuple[int, int]:
    """Width and height of the generated images, in pixels, as asked for.

    Raises:
        ConfigError: `evaluate.size` is not WIDTHxHEIGHT.
    """
    if pipeline.evaluate.size is None:
        side = pipeline.train.phases[-1].resolution
        return side, side
    match = re.fullmatch(r"(\d+)x(\d+)", pipeline.evaluate.size)
    if not match:
        raise ConfigError(f"evaluate.size = {pipeline.evaluate.size!r} is not WIDTHxHEIGHT", do="write for example 1024x768")
    return int(match[1]), int(match[2])


class Painter:
    """The trained model with all that it needs to make pictures of prompts; loaded when the first one is asked for.

    Args:
        pipeline: `evaluate` says how to sample.
        trained: output of the last training phase.
    """

    def __init__(self, pipeline: Pipeline, trained: Output) -> None:
        self.settings, self.trained, self.pipeline = pipeline.evaluate, trained, pipeline
        self.width, self.height = image_size(pipeline)
        self.components = resolve(pipeline.components)
        self.batches = Batches(self.settings.batch_size, "evaluate")

    @cached_property
    def device(self) -> torch.device:
        return torch.device(choose_device(self.settings.device, "generating images"))

    @cached_property
    def model(self) -> Any:
        return read_model(self.trained).to(self.device)

    @cached_property
    def autoencoder(self) -> Any:
        return load_autoencoder(self.components.need("autoencoder"), str(self.device))

    @cached_property
    def conditioning(self) -> Conditioning:
        max_tokens = self.pipeline.train.phases[-1].max_tokens or self.pipeline.encode.max_tokens
        return Conditioning(self.components.need("text_encoder"), self.device, torch.float32, max_tokens)

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[np.ndarray]:
        """One picture (height, width, 3) uint8 a prompt. Texts are padded to the longest prompt given here."""
        text = self.conditioning.of_prompts([*prompts, ""])
        height, width = self._latent_size()
        sampling = Sampling(self.settings.steps, self.settings.solver, self.settings.guidance)

        def work(numbers: Sequence[int]) -> torch.Tensor:
            rows = list(numbers)
            latent = generate(
                self.model, text.rows(rows), text.rows([-1]), height=height, width=width, seeds=[seeds[n] for n in rows], sampling=sampling
            )
            return self.autoencoder.decode(self.autoencoder.denormalize(latent))

        images = [image for _, batch in self.batches.run(range(len(prompts)), work) for image in batch]
        return [((image.float().cpu() + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy() for image in images]

    def told(self, prompt: str, seed: int) -> PngInfo:
        """What is written into a picture's file: prompt, and how it was made."""
        info = PngInfo()
        info.add_text("prompt", prompt)
        made = {"seed": seed, "steps": self.settings.steps, "guidance_scale": self.settings.guidance, "solver": self.settings.solver}
        info.add_text("parameters", json.dumps({**made, "model": f"{self.trained.name}/{self.trained.digest}"}))
        return info

    def _latent_size(self) -> tuple[int, int]:
        if self.autoencoder.channels != self.model.config.channels:
            raise InputError(
                f"the autoencoder has {self.autoencoder.channels} channels, the model {self.model.config.channels}",
                do="name the autoencoder that the model was trained with",
            )
        patch = self.model.config.patch_size
        height, width = (side // self.autoencoder.downscale // patch * patch for side in (self.height, self.width))
        if not height or not width:
            raise ConfigError(f"{self.width}x{self.height} pixels are too few for this model", where="evaluate.size")
        return height, width


def write_set(draft: Draft, prompts: PromptSet, painter: Painter, bar: Tracker) -> None:
    """Generate what is missing of a set: tars of 64 PNG files, and a grid of the first 64 images."""
    for start in range(0, len(prompts.texts), IMAGES_A_TAR):
        name, texts = shard_name(prompts.name, start // IMAGES_A_TAR, "tar"), prompts.texts[start : start + IMAGES_A_TAR]
        if not draft.has(name):
            seeds = [painter.settings.seed + start + number for number in range(len(texts))]
            pictures = painter.paint(texts, seeds)
            with draft.write(name) as file:
                with TarShard(file.path) as tar:
                    for number, (picture, text, seed) in enumerate(zip(pictures, texts, seeds, strict=True), start):
                        tar.add(f"{prompts.name}-{number:05d}", "PNG", _png(picture, painter.told(text, seed)))
                file.counts.update(images=len(texts))
        bar.advance(len(texts))


def read_set(folder: Path, name: str, count: int) -> list[np.ndarray]:
    """The first `count` pictures of a set, (H, W, 3) uint8 each."""
    return [np.asarray(image) for image in islice(_images(folder, name), count)]


def read_prompts_of(folder: Path, name: str, count: int) -> list[str]:
    """The prompts of the first `count` pictures of a set, as written in their files."""
    return [image.text["prompt"] for image in islice(_images(folder, name), count)]


def _images(folder: Path, name: str) -> Iterator[PngImageFile]:
    for path in sorted(folder.glob(f"{name}-[0-9][0-9][0-9][0-9][0-9].tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member)
                assert data is not None
                yield PngImageFile(io.BytesIO(data.read()))


def write_grid(draft: Draft, name: str, pictures: Sequence[np.ndarray], told: Mapping[str, Any]) -> None:
    """Write a PNG of up to 64 pictures in rows of eight, with `told` in its text chunks."""
    if draft.has(name):
        return
    info = PngInfo()
    for key, value in told.items():
        info.add_text(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    with draft.write(name) as file:
        file.path.write_bytes(_png(grid(pictures[:GRID_IMAGES]), info))


def grid(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size side by side, eight a row, on white."""
    height, width = pictures[0].shape[:2]
    columns = min(len(pictures), GRID_COLUMNS)
    rows = -(-len(pictures) // columns)
    down, right = height + GRID_GAP_PX, width + GRID_GAP_PX
    sheet = np.full((rows * down - GRID_GAP_PX, columns * right - GRID_GAP_PX, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * down, place % columns * right
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _png(pixels: np.ndarray, info: PngInfo) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
