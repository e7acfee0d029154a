"""Generate images from prompts, write them as PNG files in tars, and read them back."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.PngImagePlugin import PngImageFile

from hdm.data.shards import TarShard
from hdm.data.tables import shard_name
from hdm.diffusion.sampler import Sampling
from hdm.evaluation.settings import Pipeline
from hdm.generation.conditioning import Conditioning
from hdm.generation.picture_files import named, png, sheet
from hdm.generation.text_to_image import TextToImage
from hdm.model_files.opening import Addition, open_model
from hdm.model_files.stored import StoredModel
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import resolve
from hdm.models.devices import Batches, choose_device, stage_batches
from hdm.scoring.judges import PromptSet
from hdm.store import Draft, Folder, Output
from hdm.values import size_of

# One part of the work, so an interruption costs at most these images.
IMAGES_A_TAR = 64
GRID_COLUMNS = 8
GRID_IMAGES = 64
GRID_GAP_PX = 2


def image_size(pipeline: Pipeline) -> tuple[int, int]:
    """Width and height of the generated images, in pixels."""
    if pipeline.evaluate.size is None:
        side = pipeline.train.phases[-1].resolution
        return side, side
    return size_of(pipeline.evaluate.size)


class Painter:
    """The trained model and everything that it needs to generate pictures. It is loaded when the
    first picture is needed.

    Args:
        pipeline: `evaluate` says how to sample.
        trained: output of the last training phase.
        autoencoder: the one whose latents it was trained on.
    """

    def __init__(self, pipeline: Pipeline, trained: Output, autoencoder: str) -> None:
        self.autoencoder = autoencoder
        self.settings = pipeline.evaluate
        self.trained = trained
        self.pipeline = pipeline
        self.components = resolve(pipeline.components)
        self.sampling = Sampling.of(self.settings)

    @cached_property
    def batches(self) -> Batches:
        # The device on which the model was loaded, which `auto` may have chosen.
        device = self.text_to_image.autoencoder.device
        size = self.settings.batch_size
        threads = self.pipeline.threads
        return stage_batches(size, device, threads, "evaluate.device")

    @cached_property
    def text_to_image(self) -> TextToImage:
        device = torch.device(choose_device(self.settings.device, "generating images"))
        max_tokens = self.pipeline.train.phases[-1].max_tokens or self.pipeline.encode.max_tokens
        return TextToImage(
            self._stored().denoiser().to(device).eval().requires_grad_(False),
            Conditioning(self.components.need("text_encoder"), device, torch.float32, max_tokens),
            load_autoencoder(self.autoencoder, str(device)),
        )

    def _stored(self) -> StoredModel:
        training = self.pipeline.train
        start = training.start
        # An adapter whose base is the work of no training: the settings alone say where that lies.
        if len(training.phases) == 1 and training.phases[0].adapter and start and start.weights:
            base = Path(start.weights).expanduser()
            return open_model(base, adapters=[Addition(self.trained.path)])
        return open_model(self.trained.path)

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[np.ndarray]:
        """One picture (height, width, 3) uint8 for each prompt. Texts are padded to the longest of
        these prompts.
        """
        width, height = image_size(self.pipeline)
        return self.text_to_image(
            prompts,
            width=width,
            height=height,
            seeds=seeds,
            batches=self.batches,
            sampling=self.sampling,
        )

    def description(self, prompt: str, seed: int) -> dict[str, Any]:
        """The metadata of a picture's file: prompt and parameters."""
        parameters = {
            "seed": seed,
            **asdict(self.sampling),
            "model": f"{self.trained.name}/{self.trained.digest}",
        }
        return {"prompt": prompt, "parameters": parameters}


def write_tar(
    folder: Folder, name: str, start: int, texts: Sequence[str], painter: Painter
) -> None:
    """Generate the images of one tar of a set.

    Args:
        folder: where to write.
        name: of the set.
        start: number of the first image.
        texts: the prompts.
    """
    # An image's seed follows from its number in the set, not from its tar or batch.
    seeds = [painter.settings.seed + start + number for number in range(len(texts))]
    pictures = painter.paint(texts, seeds)
    with folder.write(tar_name(name, start)) as file:
        with TarShard(file.path) as tar:
            images = zip(pictures, texts, seeds, strict=True)
            for number, (picture, text, seed) in enumerate(images, start):
                data = png(picture, painter.description(text, seed))
                tar.add(f"{name}-{number:05d}", "PNG", data)
        file.counts.update(images=len(texts))


def tar_name(name: str, start: int) -> str:
    """Name of the tar of a set that begins with this image."""
    return shard_name(name, start // IMAGES_A_TAR, "tar")


def read_set(folder: Path, name: str, count: int) -> list[np.ndarray]:
    """The first `count` pictures of a set, (H, W, 3) uint8 each."""
    return [np.asarray(image) for image in islice(_images(folder, name), count)]


def read_asked(folder: Path, name: str) -> list[tuple[str, int]]:
    """Prompt and seed of every picture of a set, as written in their files."""
    asked = []
    for image in _images(folder, name):
        parameters = json.loads(image.info["parameters"])
        asked.append((image.info["prompt"], parameters["seed"]))
    return asked


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


def write_grid(
    draft: Draft, name: str, pictures: Sequence[np.ndarray], description: Mapping[str, Any]
) -> None:
    """Write a PNG of up to 64 pictures in rows of eight, with `description` in its text chunks."""
    if draft.has(name):
        return
    with draft.write(name) as file:
        file.path.write_bytes(
            png(sheet(pictures[:GRID_IMAGES], GRID_COLUMNS, GRID_GAP_PX), description)
        )


def write_sheet(
    draft: Draft, prompts: PromptSet, pictures: Sequence[np.ndarray], description: Mapping[str, Any]
) -> None:
    """Write a PNG of a set's pictures in rows of eight, each above its prompt, with `description`
    in its text chunks.
    """
    name = f"sheet-{prompts.name}.png"
    if draft.has(name):
        return
    tiles = [named(picture, text) for picture, text in zip(pictures, prompts.texts, strict=True)]
    with draft.write(name) as file:
        file.path.write_bytes(png(sheet(tiles, GRID_COLUMNS, GRID_GAP_PX), description))
