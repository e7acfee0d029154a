"""Results of a finished cell: held-out losses over images seen, and the scores of its images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from hdm.config import Pipeline
from hdm.lab.grid import Cell, Grid
from hdm.scoring.metrics import Score, is_measured, read_finding
from hdm.stages import OutputGraph
from hdm.store import Store
from hdm.training.process.job import METRICS


@dataclass(frozen=True)
class Result:
    """Results of one cell.

    Args:
        num_images: number of images seen in training.
        losses: (images seen, held-out loss of the averaged weights), ascending.
        scores: the headline scores of its images, by name.
    """

    num_images: int
    losses: tuple[tuple[int, float], ...]
    scores: Mapping[str, Score]

    def loss_at(self, num_images: float) -> float | None:
        """The held-out loss after this number of images, by linear interpolation; None outside the
        measured range.
        """
        for (before, low), (after, high) in pairwise(self.losses):
            if before <= num_images <= after:
                return low + (high - low) * (num_images - before) / (after - before)
        return None


Results = Mapping[Cell, Result]


def read_result(pipeline: Pipeline, store: Store) -> Result | None:
    """Read the result of a pipeline from its outputs in the store; None if one is missing."""
    known = OutputGraph(pipeline).identities()
    trained = store.find(known[f"train.{pipeline.train.phases[-1].name}"])
    if trained is None:
        return None
    scores: dict[str, Score] = {}
    for name, identity in known.items():
        if not is_measured(name):
            continue
        output = store.find(identity)
        # A cell counts as finished only with all of its metrics.
        if output is None:
            return None
        finding = read_finding(output)
        for score in finding.scores.values():
            # Scores of the data alone say nothing about a training.
            if score.headline and finding.sees_images:
                scores[score.name] = score
    losses = []
    for text in trained.file(METRICS).read_text().splitlines():
        line = json.loads(text)
        if line.get("validation_loss") is not None:
            losses.append((line["num_images_seen"], line["validation_loss"]))
    return Result(trained.counts["images_seen"], tuple(losses), scores)


def read_results(grid: Grid, store: Store) -> dict[Cell, Result]:
    """The results of all finished cells."""
    results = {}
    for cell in grid.cells():
        result = read_result(grid.pipeline(cell), store)
        if result is not None:
            results[cell] = result
    return results
