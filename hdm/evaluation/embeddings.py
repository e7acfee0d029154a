"""Embeddings of generated images, of their prompts, and of the real pictures to compare with: made
once, and read by every metric that needs them.

<set>.safetensors     of each set of prompts: images, texts, and the real pictures of its captions
compared.safetensors  generated images, the real pictures of the same captions, and a reference
texts.json            the prompts of each set; the captions of compared pictures and the reference
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from hdm.errors import InputError, raised_by
from hdm.evaluation.images import read_generated
from hdm.evaluation.prompts import HELD_OUT
from hdm.evaluation.real import RealPictures, embeddings_of
from hdm.evaluation.settings import Pipeline
from hdm.keys import Key
from hdm.models.components import locate, resolve, weights_digest
from hdm.models.contrastive import load_contrastive
from hdm.models.devices import choose_device
from hdm.scoring.judges import PromptSet
from hdm.scoring.metrics import EMBEDDINGS, IMAGES
from hdm.store import Draft, Identity, Output, Outputs, Store

SCHEMA = 1
REAL = "filter.contrastive"
INPUTS = (IMAGES, REAL, "filter", "caption")
COMPARED = "compared"
TEXTS = "texts.json"
SIDES = ("generated", "real", "reference")
TOLD = ("captions", "reference_captions", "split", "same_shape")
EMBED_AT_ONCE = 64
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class EmbeddedSet:
    """A set of prompts; row i of each array belongs to prompt i.

    Args:
        prompts: the texts.
        images, texts: unit embeddings (N, E) of the generated images and the prompts.
        real: those of the real pictures whose captions the prompts are; None if they are not.
    """

    prompts: Sequence[str]
    images: np.ndarray
    texts: np.ndarray
    real: np.ndarray | None


@dataclass(frozen=True)
class Compared:
    """Generated images and the real pictures of the same captions, to be compared with as many
    pictures of other captions.

    Args:
        generated, real, reference: unit embeddings (N, E).
        captions: of each row of `generated` and `real`.
        reference_captions: of each row of `reference`.
        split: the pictures' split.
        same_shape: whether they all have about the generated images' aspect ratio.
    """

    generated: np.ndarray
    real: np.ndarray
    reference: np.ndarray
    captions: Sequence[str]
    reference_captions: Sequence[str]
    split: str
    same_shape: bool


@dataclass(frozen=True)
class Embedded:
    """All of an evaluation. `compared` is None where there are no captions of real pictures."""

    sets: Mapping[str, EmbeddedSet]
    compared: Compared | None


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What embeddings depend on: images, real pictures, and the contrastive model.

    Raises:
        InputError: the model is not on this machine.
    """
    model = resolve(pipeline.components).need("contrastive")
    return Identity(EMBEDDINGS, SCHEMA, {}, dict(inputs), {"contrastive": weights_digest(model)})


def preflight(pipeline: Pipeline) -> Iterator[InputError]:
    """Report a model that is not on this machine."""
    yield from raised_by(partial(locate, resolve(pipeline.components).need("contrastive")))


def make(pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store) -> Output:
    """Embed.

    Returns:
        An output as described above.
    """
    generated = read_generated(pipeline, inputs)
    device = choose_device(pipeline.evaluate.device, "the contrastive model")
    model = load_contrastive(resolve(pipeline.components), device)
    measures = inputs[REAL]
    texts: dict[str, Any] = {"sets": {}, COMPARED: None}
    with store.draft(identity) as draft:
        for prompts in generated.sets:
            images = embed(model.embed_images, generated.pictures[prompts.name])
            arrays = {"images": images, "texts": embed(model.embed_texts, prompts.texts)}
            if prompts.keys:
                arrays["real"] = embeddings_of(measures, list(prompts.keys))
            _write(draft, prompts.name, arrays)
            texts["sets"][prompts.name] = list(prompts.texts)
            if prompts.name == HELD_OUT:
                compared = select(measures, generated.real, prompts, images)
                _write(draft, COMPARED, {name: getattr(compared, name) for name in SIDES})
                texts[COMPARED] = {name: getattr(compared, name) for name in TOLD}
        if not draft.has(TEXTS):
            draft.write_json(TEXTS, texts)
        return draft.commit({"embed_size": model.embed_size})


def select(
    measures: Output, real: RealPictures, prompts: PromptSet, images: np.ndarray
) -> Compared:
    """What is compared with what.

    Args:
        measures: output `filter.contrastive`, which holds the embeddings of real pictures.
        real: the pictures.
        prompts: the captions from which images were generated.
        images: embeddings of these images.
    """
    # A picture's key may occur several times among the prompts; its first image counts.
    first_image: dict[Key, int] = {}
    for number, key in enumerate(prompts.keys):
        first_image.setdefault(key, number)
    compared = [key for key in real.compared if key in first_image]
    # As many on both sides: a Fréchet distance depends on the number of pictures.
    reference = list(real.reference[: len(compared)])
    return Compared(
        images[[first_image[key] for key in compared]],
        embeddings_of(measures, compared),
        embeddings_of(measures, reference),
        [real.captions[key] for key in compared],
        [real.captions[key] for key in reference],
        real.split,
        real.same_shape,
    )


def read_embedded(output: Output) -> Embedded:
    """Read the output."""
    texts = json.loads(output.file(TEXTS).read_bytes())
    sets = {}
    for name, prompts in texts["sets"].items():
        arrays = load_file(output.file(f"{name}.safetensors"))
        sets[name] = EmbeddedSet(prompts, arrays["images"], arrays["texts"], arrays.get("real"))
    if texts[COMPARED] is None:
        return Embedded(sets, None)
    arrays = load_file(output.file(f"{COMPARED}.safetensors"))
    told: dict[str, Any] = {**arrays, **texts[COMPARED]}
    return Embedded(sets, Compared(**told))


def embed(model: Callable[[list[Any]], np.ndarray], items: Sequence[Any]) -> np.ndarray:
    """Unit embeddings (N, E) of pictures or texts, computed in batches."""
    batches = []
    for start in range(0, len(items), EMBED_AT_ONCE):
        # In batches, since a set may hold thousands of pictures.
        batches.append(model(list(items[start : start + EMBED_AT_ONCE])))
    return np.concatenate(batches)


def _write(draft: Draft, name: str, arrays: Arrays) -> None:
    if draft.has(f"{name}.safetensors"):
        return
    with draft.write(f"{name}.safetensors") as file:
        save_file({key: np.ascontiguousarray(rows) for key, rows in arrays.items()}, file.path)
