"""Runs whose numbers are made up, so that it is known how far apart they truly are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hdm.evaluation.compared_runs import MeasuredRun, MeasuredSet
from hdm.evaluation.embeddings import Compared
from hdm.store import Output

SIZE = 6
NUM_PROMPTS = 120


def made_runs(
    seed: int,
    *,
    better: float = 0.0,
    farther: float = 0.0,
    num_prompts: int = NUM_PROMPTS,
    distances: bool = True,
) -> tuple[MeasuredRun, MeasuredRun]:
    """Two runs of one world.

    Args:
        seed: of prompts, pictures and reference.
        better: by how much the second's numbers are larger.
        farther: by how much its pictures are farther from real ones than the first's.
        num_prompts: of which each has one picture.
        distances: whether there are embeddings.
    """
    rng = np.random.default_rng(seed)
    asked = [(f"prompt {number}", number) for number in range(num_prompts)]
    captions = [prompt for prompt, _ in asked]
    hard = rng.normal(size=num_prompts)
    of_prompt = rng.normal(size=(num_prompts, SIZE))
    reference = rng.normal(size=(num_prompts, SIZE))
    real = 0.7 * of_prompt + 0.7 * rng.normal(size=(num_prompts, SIZE))
    runs = []
    for name, more, shift in (("first", 0.0, 1.0), ("second", better, 1.0 + farther)):
        generated = 0.7 * of_prompt + 0.7 * rng.normal(size=(num_prompts, SIZE))
        generated[:, 0] += shift
        numbers = hard + rng.normal(size=num_prompts) + more
        right = [bool(one > 0) for one in hard + rng.normal(size=num_prompts)]
        others = [f"other {number}" for number in range(num_prompts)]
        compared = Compared(generated, real, reference, captions, others, "held_out", False)
        images = Output("evaluate.images", name, Path(name), (), {}, {}, {}, {}, 1, {})
        one = MeasuredSet("Prompts", asked, {"colour": right}, {"clip_score": numbers})
        runs.append(
            MeasuredRun(name, images, {"prompts": one}, compared if distances else None, {})
        )
    return runs[0], runs[1]
