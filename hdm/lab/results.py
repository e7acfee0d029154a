"""What a finished cell says: its held-out losses over images seen, and the share of prompts that it got right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from hdm.config import Pipeline
from hdm.evaluation.evaluate import METRICS as EVALUATION
from hdm.lab.grid import Cell, Grid
from hdm.stages import identities
from hdm.store import Store
from hdm.training.job import METRICS

ONE_OBJECT = "one_object"


@dataclass(frozen=True)
class Result:
    """Of one cell.

    Args:
        num_images: seen in training.
        losses: (images seen, held-out loss of the averaged weights), ascending.
        right: question → share of the prompts of one object; {} where no truth is known.
        num_prompts: these.
    """

    num_images: int
    losses: tuple[tuple[int, float], ...]
    right: Mapping[str, float]
    num_prompts: int

    def loss_at(self, num_images: float) -> float | None:
        """The held-out loss after so many images, on a straight line between two that were measured; None outside them."""
        for (before, low), (after, high) in pairwise(self.losses):
            if before <= num_images <= after:
                return low + (high - low) * (num_images - before) / (after - before)
        return None


Results = Mapping[Cell, Result]


def read_result(pipeline: Pipeline, store: Store) -> Result | None:
    """Of the pipeline's outputs in the store; None where they are not."""
    known = identities(pipeline)
    trained, evaluated = (
        store.find(known[f"train.{pipeline.train.phases[-1].name}"]),
        store.find(known["evaluate"]),
    )
    if trained is None or evaluated is None:
        return None
    lines = [json.loads(line) for line in trained.file(METRICS).read_text().splitlines()]
    losses = [
        (line["num_images_seen"], line["validation_loss"])
        for line in lines
        if line.get("validation_loss") is not None
    ]
    answers = (
        json.loads(evaluated.file(EVALUATION).read_bytes()).get("accuracy", {}).get(ONE_OBJECT, {})
    )
    right = {question: share["share"] for question, share in answers.items()}
    return Result(
        trained.counts["images_seen"],
        tuple(losses),
        right,
        next((share["total"] for share in answers.values()), 0),
    )


def read_results(grid: Grid, store: Store) -> dict[Cell, Result]:
    """Of every cell that is finished."""
    found = ((cell, read_result(grid.pipeline(cell), store)) for cell in grid.cells())
    return {cell: result for cell, result in found if result is not None}
