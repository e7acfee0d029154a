"""Pictures generated every so many images, which the output keeps."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from hdm.training.measures.sample_grid import Grid
from hdm.training.process.ranks import Ranks
from hdm.training.state.milestones import Milestones
from hdm.training.state.position import Position
from hdm.training.state.technique import Technique


@dataclass(eq=False)
class GeneratedPictures(Technique):
    """Writes a grid after each step that passes a multiple of `every` images.

    Args:
        grid: makes the pictures.
        milestones: where they go.
        ranks: who writes.
        every: images seen between two grids.
        batch_size: images a step.
    """

    grid: Grid
    milestones: Milestones
    ranks: Ranks
    every: int
    batch_size: int

    def due(self, now: Position) -> bool:
        seen = now.num_images_seen
        return seen // self.every > (seen - self.batch_size) // self.every

    def measure(self, now: Position) -> dict[str, Any]:
        if not self.due(now):
            return {}
        name = f"generated-{now.num_images_seen:010d}.png"
        # The other ranks of a sharded model sample too, and write nothing.
        writing = self.milestones.write(name) if self.ranks.first else contextlib.nullcontext()
        with writing as path:
            self.grid.write(path, self.ranks.interrupted)
        return {}
