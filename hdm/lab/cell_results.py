"""What a finished cell says: its held-out losses over images seen, and the scores of its images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from hdm.config import Pipeline
from hdm.lab.grid import Cell, Grid
from hdm.scoring.metrics import Score, is_measured, read_finding
from hdm.stages import identities
from hdm.store import Store
from hdm.training.process.job import METRICS


@dataclass(frozen=True)
class Result:
    """Of one cell.

    Args:
        num_images: seen in training.
        losses: (images seen, held-out loss of the averaged weights), ascending.
        scores: the scores of its images that tell most, by name.
    """

    num_images: int
    losses: tuple[tuple[int, float], ...]
    scores: Mapping[str, Score]

    def loss_at(self, num_images: float) -> float | None:
        """The held-out loss after so many images, on a straight line between two that were
        measured; None outside them.
        """
        for (before, low), (after, high) in pairwise(self.losses):
            if before <= num_images <= after:
                return low + (high - low) * (num_images - before) / (after - before)
        return None


Results = Mapping[Cell, Result]


def read_result(pipeline: Pipeline, store: Store) -> Result | None:
    """Of the pipeline's outputs in the store; None where they are not."""
    known = identities(pipeline)
    trained = store.find(known[f"train.{pipeline.train.phases[-1].name}"])
    names = [name for name in known if is_measured(name)]
    measured = [store.find(known[name]) for name in names]
    made = [output for output in measured if output is not None]
    if trained is None or len(made) < len(names):
        return None
    lines = [json.loads(line) for line in trained.file(METRICS).read_text().splitlines()]
    losses = [
        (line["num_images_seen"], line["validation_loss"])
        for line in lines
        if line.get("validation_loss") is not None
    ]
    scores = {
        name: score
        for finding in map(read_finding, made)
        for name, score in finding.scores.items()
        if score.headline and finding.sees_images
    }
    return Result(trained.counts["images_seen"], tuple(losses), scores)


def read_results(grid: Grid, store: Store) -> dict[Cell, Result]:
    """Of every cell that is finished."""
    results = ((cell, read_result(grid.pipeline(cell), store)) for cell in grid.cells())
    return {cell: result for cell, result in results if result is not None}
