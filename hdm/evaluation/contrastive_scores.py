"""Numbers from a contrastive model: likeness of images to prompts, distance to real pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hdm.evaluation.prompts import HELD_OUT
from hdm.evaluation.real import RealPictures, embeddings_of, normal_prompt
from hdm.models.contrastive import Contrastive
from hdm.scoring.judges import PromptSet
from hdm.statistics import compare_with_reference, mean_with_error
from hdm.store import Output

EMBED_AT_ONCE = 64


def embed(model: Callable[[list[Any]], np.ndarray], items: Sequence[Any]) -> np.ndarray:
    """Unit embeddings (N, E) of pictures or texts, some at a time."""
    starts = range(0, len(items), EMBED_AT_ONCE)
    return np.concatenate([model(list(items[start : start + EMBED_AT_ONCE])) for start in starts])


def clip_scores(
    prompts: PromptSet, images: np.ndarray, texts: np.ndarray, real: np.ndarray | None
) -> dict[str, Any]:
    """Mean cosine of pictures and texts in the contrastive model's space.

    Args:
        prompts: the set.
        images, texts: embeddings of its generated images and its prompts.
        real: embeddings of the pictures whose captions the prompts are, if they are.

    Returns:
        `generated`; `exchanged`, the same images with each other's prompts, which is what no
        likeness at all scores; and `real`. Prompts that repeat count once in the errors.
    """
    asked = [normal_prompt(text) for text in prompts.texts]
    scores = {
        "generated": mean_with_error((images * texts).sum(1), asked),
        "exchanged": _exchanged(asked, images, texts),
    }
    if real is not None:
        scores["real"] = mean_with_error((real * texts).sum(1), asked)
    return scores


def _exchanged(prompts: Sequence[str], images: np.ndarray, texts: np.ndarray) -> dict[str, Any]:
    """Each image with the next one's prompt, where that is another."""
    others = [(number + 1) % len(prompts) for number in range(len(prompts))]
    pairs = [
        (number, other) for number, other in enumerate(others) if prompts[number] != prompts[other]
    ]
    scores = np.array([images[number] @ texts[other] for number, other in pairs])
    return mean_with_error(scores, [prompts[number] for number, _ in pairs])


def distances(
    measures: Output, real: RealPictures, prompts: PromptSet, images: np.ndarray
) -> dict[str, Any]:
    """How far generated images lie from real pictures of other captions, beside the real pictures
    of the same captions.

    Args:
        measures: output `filter.contrastive`, which holds the embeddings of real pictures.
        real: the pictures.
        prompts: the captions that images were generated from.
        images: embeddings of these images.

    Returns:
        `frechet` and `kernel`, as `compare_with_reference` has them, of `generated` and `real`; how
        many pictures each of the three sets has, of how many captions. {} with fewer than two
        captions on either side.
    """
    place = {key: number for number, key in reversed(list(enumerate(prompts.keys)))}
    compared = [key for key in real.compared if key in place]
    reference = real.reference[: len(compared)]
    asked = [normal_prompt(real.captions[key]) for key in compared]
    others = [normal_prompt(real.captions[key]) for key in reference]
    held = embeddings_of(measures, list(reference))
    if len(set(asked)) < 2 or len(set(others)) < 2 or not held.size:
        return {}
    sets = {
        "generated": images[[place[key] for key in compared]],
        "real": embeddings_of(measures, compared),
    }
    return {
        **compare_with_reference(held, sets, others, asked),
        "num_compared": len(compared),
        "num_captions": len(set(asked)),
        "embed_size": held.shape[1],
    }


def likeness(
    contrastive: Contrastive,
    measures: Output,
    sets: Sequence[PromptSet],
    pictures: Mapping[str, Sequence[np.ndarray]],
    real: RealPictures,
) -> dict[str, Any]:
    """`clip_score` by set and, for captions of held-out pictures, `distances`."""
    found: dict[str, Any] = {"clip_score": {}, "distances": {}}
    for prompts in sets:
        images = embed(contrastive.embed_images, pictures[prompts.name])
        texts = embed(contrastive.embed_texts, prompts.texts)
        originals = embeddings_of(measures, list(prompts.keys)) if prompts.keys else None
        found["clip_score"][prompts.name] = clip_scores(prompts, images, texts, originals)
        if prompts.name == HELD_OUT:
            found["distances"] = distances(measures, real, prompts, images)
    return found
