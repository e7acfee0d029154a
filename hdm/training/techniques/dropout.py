"""Seeds of dropout."""

from __future__ import annotations

import torch

from hdm.chance import seed_at
from hdm.training.prefetcher import DROPOUT
from hdm.training.state.position import Position
from hdm.training.state.technique import Technique


class DropoutSeeds(Technique):
    """What a micro-batch drops depends on its place in the training clock alone, so no generator's
    state has to be saved.

    Cut into other micro-batches, or among other processes, a batch drops other features, as many of
    them.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_micro_batch(self, now: Position, first: int) -> None:
        torch.manual_seed(seed_at(self.seed, DROPOUT, now.num_images_seen + first))
