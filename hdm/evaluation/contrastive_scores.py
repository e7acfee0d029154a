"""Scores from a contrastive model: similarity of images and prompts, distance to real pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hdm.evaluation.prompts import HELD_OUT
from hdm.evaluation.real import RealPictures, embeddings_of, normal_prompt
from hdm.keys import Key
from hdm.models.contrastive import Contrastive
from hdm.scoring.judges import PromptSet
from hdm.statistics import compare_with_reference, mean_with_error
from hdm.store import Output

EMBED_AT_ONCE = 64


def embed(model: Callable[[list[Any]], np.ndarray], items: Sequence[Any]) -> np.ndarray:
    """Unit embeddings (N, E) of pictures or texts, computed in batches."""
    batches = []
    for start in range(0, len(items), EMBED_AT_ONCE):
        # In batches, since a set may hold thousands of pictures.
        batches.append(model(list(items[start : start + EMBED_AT_ONCE])))
    return np.concatenate(batches)


def clip_scores(
    prompts: PromptSet, images: np.ndarray, texts: np.ndarray, real: np.ndarray | None
) -> dict[str, Any]:
    """Mean cosine similarity of pictures and texts in the contrastive model's space.

    Args:
        prompts: the set.
        images, texts: embeddings of its generated images and its prompts.
        real: embeddings of the real pictures whose captions the prompts are; None if they are not.

    Returns:
        `generated`; `exchanged`, the same images with each other's prompts, which is the score of
        no similarity at all; and `real`. Repeated prompts count once in the errors.
    """
    groups = list(map(normal_prompt, prompts.texts))
    scores = {
        # Embeddings have length 1, so their products are cosines.
        "generated": mean_with_error((images * texts).sum(1), groups),
        "exchanged": _exchanged(groups, images, texts),
    }
    if real is not None:
        scores["real"] = mean_with_error((real * texts).sum(1), groups)
    return scores


def _exchanged(prompts: Sequence[str], images: np.ndarray, texts: np.ndarray) -> dict[str, Any]:
    """Each image with the next image's prompt, where that differs from its own."""
    scores = []
    groups = []
    for number, prompt in enumerate(prompts):
        # A fixed neighbour instead of a random exchange: the score is the same in every run.
        other = (number + 1) % len(prompts)
        if prompts[other] != prompt:
            scores.append(images[number] @ texts[other])
            groups.append(prompt)
    return mean_with_error(np.array(scores), groups)


def distances(
    measures: Output, real: RealPictures, prompts: PromptSet, images: np.ndarray
) -> dict[str, Any]:
    """Distances of generated images, and of the real pictures with the same captions, from real
    pictures with other captions.

    Args:
        measures: output `filter.contrastive`, which holds the embeddings of real pictures.
        real: the pictures.
        prompts: the captions from which images were generated.
        images: embeddings of these images.

    Returns:
        `frechet` and `kernel`, as in `compare_with_reference`, of `generated` and `real`; the
        number of pictures in each of the three sets, and of captions. {} with fewer than two
        captions on either side.
    """
    # A picture's key may occur several times among the prompts; its first image counts.
    first_image: dict[Key, int] = {}
    for number, key in enumerate(prompts.keys):
        first_image.setdefault(key, number)
    compared = [key for key in real.compared if key in first_image]
    # As many on both sides: a Fréchet distance depends on the number of pictures.
    reference = real.reference[: len(compared)]
    captions = [normal_prompt(real.captions[key]) for key in compared]
    other_captions = [normal_prompt(real.captions[key]) for key in reference]
    others = embeddings_of(measures, list(reference))
    if len(set(captions)) < 2 or len(set(other_captions)) < 2 or not others.size:
        return {}
    sets = {
        "generated": images[[first_image[key] for key in compared]],
        "real": embeddings_of(measures, compared),
    }
    return {
        **compare_with_reference(others, sets, other_captions, captions),
        "num_compared": len(compared),
        "num_captions": len(set(captions)),
        "embed_size": others.shape[1],
    }


def likeness(
    contrastive: Contrastive,
    measures: Output,
    sets: Sequence[PromptSet],
    pictures: Mapping[str, Sequence[np.ndarray]],
    real: RealPictures,
) -> dict[str, Any]:
    """`clip_score` by set, and `distances` for the set of captions of held-out pictures."""
    scores: dict[str, Any] = {"clip_score": {}, "distances": {}}
    for prompts in sets:
        images = embed(contrastive.embed_images, pictures[prompts.name])
        texts = embed(contrastive.embed_texts, prompts.texts)
        originals = embeddings_of(measures, list(prompts.keys)) if prompts.keys else None
        scores["clip_score"][prompts.name] = clip_scores(prompts, images, texts, originals)
        if prompts.name == HELD_OUT:
            scores["distances"] = distances(measures, real, prompts, images)
    return scores
