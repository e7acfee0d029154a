"""Scores from a contrastive model: similarity of images and prompts, distance to real pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hdm.distances.frechet import can_fit, frechet_replicates
from hdm.distances.kernel import kernel_distance
from hdm.evaluation.embeddings import Compared, EmbeddedSet
from hdm.evaluation.real import normal_prompt
from hdm.statistics import Estimate, mean_of


def cosines(rows: EmbeddedSet) -> dict[str, Estimate | None]:
    """Mean cosine similarity of pictures and texts in the contrastive model's space.

    Returns:
        `generated`; `exchanged`, the same images with each other's prompts, which is the score of
        no similarity at all; and `real`, of the real pictures whose captions the prompts are, if
        they are. Repeated prompts count once in the intervals. None where no two prompts differ.
    """
    groups = list(map(normal_prompt, rows.prompts))
    # Embeddings have length 1, so their products are cosines.
    found = {
        "generated": mean_of((rows.images * rows.texts).sum(1), groups),
        "exchanged": _exchanged(groups, rows.images, rows.texts),
    }
    if rows.real is not None:
        found["real"] = mean_of((rows.real * rows.texts).sum(1), groups)
    return found


def _exchanged(prompts: Sequence[str], images: np.ndarray, texts: np.ndarray) -> Estimate | None:
    """Each image with the next image's prompt, where that differs from its own."""
    scores = []
    groups = []
    for number, prompt in enumerate(prompts):
        # A fixed neighbour instead of a random exchange: the score is the same in every run.
        other = (number + 1) % len(prompts)
        if prompts[other] != prompt:
            scores.append(images[number] @ texts[other])
            groups.append(prompt)
    return mean_of(np.array(scores), groups)


@dataclass(frozen=True)
class Distances:
    """The distance of generated images from real pictures of other captions; the floor, which is
    that of the real pictures of the same captions; and by how much they differ.
    """

    generated: Estimate
    real: Estimate
    difference: Estimate

    @property
    def is_mostly_bias(self) -> bool:
        """Of biased distances: whether the floor is more than half of the distance."""
        return self.real.value > self.generated.value / 2


def comparable(compared: Compared | None) -> bool:
    """Whether both sides have at least two captions."""
    if compared is None or not compared.reference.size:
        return False
    return min(map(len, map(set, prompts_of(compared)))) > 1


def prompts_of(compared: Compared) -> tuple[list[str], list[str]]:
    """The captions of compared pictures, and of the reference, in one form."""
    captions = list(map(normal_prompt, compared.captions))
    return captions, list(map(normal_prompt, compared.reference_captions))


def kernel_distances(compared: Compared) -> Distances:
    """Unbiased kernel distances."""
    captions, others = prompts_of(compared)
    sets = ([compared.generated], [compared.real], [compared.generated, compared.real])
    return Distances(
        *(kernel_distance(rows, compared.reference, captions, others) for rows in sets)
    )


def frechet_distances(compared: Compared) -> Distances | None:
    """Fréchet distances; None where there are no more pictures than dimensions."""
    if not can_fit(compared.generated, compared.reference):
        return None
    captions, others = prompts_of(compared)
    generated, real = (
        frechet_replicates(rows, compared.reference, captions, others)
        for rows in (compared.generated, compared.real)
    )
    return Distances(generated.estimate(), real.estimate(), (generated - real).estimate())
