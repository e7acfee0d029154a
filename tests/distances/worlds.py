"""Made-up evaluations whose truth is known by making many: embeddings of real pictures of some
prompts, and of pictures that models generate for other prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hdm.statistics import Estimate


@dataclass(frozen=True)
class World:
    """One evaluation.

    Args:
        models: of each model, (N, E) embeddings; row i of each is of prompt `prompts[i]`.
        reference: (M, E) of real pictures of other prompts.
        prompts, reference_prompts: the prompt of each row.
    """

    models: Sequence[np.ndarray]
    reference: np.ndarray
    prompts: Sequence[int]
    reference_prompts: Sequence[int]


def made(
    seed: int,
    *,
    num_prompts: int = 150,
    repeats: int = 1,
    size: int = 8,
    shifts: Sequence[float] = (1.0,),
    spread: float = 1.0,
) -> World:
    """An evaluation.

    Args:
        num_prompts, repeats: of either side; pictures of a prompt have half of their variance in
            common, and so have those that several models generate for it.
        size: dimensions.
        shifts: for each model, by how much its pictures are off, along the first dimension.
        spread: of the models' pictures; 1: as much as real ones.
    """
    rng = np.random.default_rng(seed)
    prompts = np.arange(num_prompts).repeat(repeats)
    half = np.sqrt(0.5)

    def pictures(of_prompt: np.ndarray) -> np.ndarray:
        own = half * rng.normal(size=(len(prompts), size))
        rows: np.ndarray = half * of_prompt[prompts] + own
        return rows

    asked = rng.normal(size=(num_prompts, size))
    models = []
    for shift in shifts:
        rows = spread * pictures(asked)
        rows[:, 0] += shift
        models.append(rows)
    reference = pictures(rng.normal(size=(num_prompts, size)))
    return World(models, reference, list(prompts), list(prompts))


def coverage(found: Sequence[Estimate]) -> float:
    """How often the interval of an evaluation holds the mean of all of them."""
    truth = float(np.mean([one.value for one in found]))
    held = []
    for one in found:
        assert one.low is not None
        assert one.high is not None
        held.append(one.low <= truth <= one.high)
    return float(np.mean(held))
