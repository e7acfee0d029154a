"""The images that an evaluation is about: generated once, at fixed seeds, and read by every metric.

<set>-NNNNN.tar      generated images, 64 PNG files a tar; prompt and settings in their text chunks
grid.png             the first set's first 64 images; grid-<set>.png those of the others
sheet-<set>.png      the images of a set from whose names a person chooses, with these names
sets.json            of each set its title and number of images; which real pictures captions are of
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hdm import parts
from hdm.evaluation.painting import (
    GRID_IMAGES,
    IMAGES_A_TAR,
    Painter,
    image_size,
    read_set,
    tar_name,
    write_grid,
    write_sheet,
    write_tar,
)
from hdm.evaluation.prompts import check_prompts, identify_prompts, prompt_sets
from hdm.evaluation.real import RealPictures, read_real
from hdm.evaluation.settings import Pipeline
from hdm.models.components import autoencoder_in, autoencoder_weights, resolve, weights_digest
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.scoring.judges import PromptSet
from hdm.scoring.metrics import IMAGES
from hdm.store import Draft, Identity, Output, Outputs, Store

SCHEMA = 1
SETS = "sets.json"
SHOWN_KEYS = 64  # real pictures that are listed by key, for people who want to look at them


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the images depend on: prompts, sampler, seeds, the trained model and its autoencoder.

    Raises:
        ConfigError: settings that do not go together.
        InputError: a model or the file of prompts is not on this machine.
    """
    check_prompts(pipeline)
    # The second part replaces `prompts`: a file's content counts, not its path.
    config = {**pipeline.evaluate.result_fields(), **identify_prompts(pipeline)}
    # Not a setting of the evaluation, but prompts are cut to it.
    config["max_tokens"] = pipeline.train.phases[-1].max_tokens or pipeline.encode.max_tokens
    weights = {
        **autoencoder_weights(inputs, pipeline.components),
        "text_encoder": weights_digest(resolve(pipeline.components).need("text_encoder")),
    }
    return Identity(IMAGES, SCHEMA, config, dict(inputs), weights)


def make(pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store) -> Output:
    """Generate the images.

    Returns:
        An output as described above.
    """
    return parts.make_output(Painting(pipeline, inputs), store, identity, pipeline.execution)


@dataclass(frozen=True)
class _Tar:
    """Some images of a set, and the number of the first."""

    set_name: str
    start: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Painting(Step[_Tar, Painter]):
    """Generates images, tar by tar."""

    pipeline: Pipeline
    inputs: Outputs

    what = "evaluate"
    unit = "images"

    @cached_property
    def asked(self) -> tuple[RealPictures, list[PromptSet]]:
        return asked_for(self.pipeline, self.inputs)

    @property
    def trained(self) -> Output:
        return next(made for name, made in self.inputs.items() if name.startswith("train."))

    def plan(self) -> Iterator[Part[_Tar]]:
        _, sets = self.asked
        for prompts in sets:
            for start in range(0, len(prompts.texts), IMAGES_A_TAR):
                texts = prompts.texts[start : start + IMAGES_A_TAR]
                files = {IMAGES: (tar_name(prompts.name, start),)}
                yield Part(_Tar(prompts.name, start, texts), files, len(texts))

    def open(self) -> AbstractContextManager[Painter]:
        autoencoder = autoencoder_in(self.inputs, self.pipeline.components)
        return nullcontext(Painter(self.pipeline, self.trained, autoencoder))

    def make_part(self, part: Part[_Tar], folders: Folders, tools: Painter, bar: Tracker) -> None:
        tar = part.task
        write_tar(folders[IMAGES], tar.set_name, tar.start, tar.texts, tools)
        bar.advance(len(tar.texts))

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        real, sets = self.asked
        for number, prompts in enumerate(sets):
            # Overviews need all pictures of a set, so they are drawn after the last tar.
            grid = f"grid-{prompts.name}.png" if number else "grid.png"
            _write_overview(draft, grid, prompts, draft.identity, self.trained)
        if not draft.has(SETS):
            draft.write_json(SETS, _described(real, sets))
        return {}


def _write_overview(
    draft: Draft, grid: str, prompts: PromptSet, identity: Identity, trained: Output
) -> None:
    pictures = read_set(draft.path, prompts.name, len(prompts.texts))
    how_made = {
        "prompts": prompts.texts[:GRID_IMAGES],
        "settings": identity.config,
        "model": trained.digest,
    }
    write_grid(draft, grid, pictures, how_made)
    if prompts.choices:
        write_sheet(draft, prompts, pictures, how_made)


def _described(real: RealPictures, sets: list[PromptSet]) -> dict[str, Any]:
    described = []
    for prompts in sets:
        described.append(
            {
                "name": prompts.name,
                "title": prompts.title,
                "count": len(prompts.texts),
                "keys": list(prompts.keys)[:SHOWN_KEYS],
            }
        )
    shown = {"split": real.split, "same_shape": real.same_shape, "count": len(real.captions)}
    return {"sets": described, "real": shown}


def asked_for(pipeline: Pipeline, inputs: Outputs) -> tuple[RealPictures, list[PromptSet]]:
    """The real pictures to compare with, and the prompts of every set.

    Args:
        inputs: the outputs `filter` and `caption`.
    """
    width, height = image_size(pipeline)
    real = read_real(inputs, width / height, pipeline.evaluate.num_images)
    # Not stored but chosen anew by each reader: the choice follows from settings and inputs.
    return real, prompt_sets(pipeline, real)


@dataclass(frozen=True)
class Generated:
    """What metrics read: the prompts of every set, its images, and the real pictures.

    Args:
        real: the pictures held out of training to compare with.
        sets: the prompts.
        pictures: of each set, by its name: (H, W, 3) uint8 each, in the order of the prompts.
    """

    real: RealPictures
    sets: tuple[PromptSet, ...]
    pictures: Mapping[str, list[np.ndarray]]


def read_generated(pipeline: Pipeline, inputs: Outputs) -> Generated:
    """Read all images with what was asked for.

    Args:
        inputs: the outputs `evaluate.images`, `filter` and `caption`.
    """
    real, sets = asked_for(pipeline, inputs)
    folder = inputs[IMAGES].path
    pictures = {
        prompts.name: read_set(folder, prompts.name, len(prompts.texts)) for prompts in sets
    }
    return Generated(real, tuple(sets), pictures)
