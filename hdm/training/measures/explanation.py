"""How much of their target weights explain, of the training's own batches."""

from __future__ import annotations

from dataclasses import replace

import torch

from hdm.training.denoising import Denoising
from hdm.training.prefetcher import Prefetcher
from hdm.training.state.current import State
from hdm.training.state.position import BLOCK_IMAGES, explained


class Explanation:
    """Measures a block of batches, as few as say something, at the training's times, tokens and
    dropout.

    Args:
        denoising: computes losses.
        prefetcher: of a phase; makes the batches.
        state: whose weights are measured.
    """

    def __init__(self, denoising: Denoising, prefetcher: Prefetcher, state: State) -> None:
        self.denoising = denoising
        self.prefetcher = prefetcher
        self.state = state
        self.batch_size = batch_size = denoising.phase.batch_size
        # Whole batches, and at least BLOCK_IMAGES unless the phase is shorter.
        self.block = min(prefetcher.num_images, -(-BLOCK_IMAGES // batch_size) * batch_size)

    def begin(self) -> None:
        """Note what the weights explain of the next batches, unless more is known."""
        now = self.state.position
        if now.most_explained is None:
            share = self._of(now.num_images_seen)
            self.state.position = replace(now, most_explained=share)

    def of_last(self) -> float:
        """The share that they explain of the last ones."""
        return self._of(self.state.position.num_images_seen - self.block)

    def _of(self, begin: int) -> float:
        self.state.trainable.model.train()
        total = torch.zeros(2, device=self.denoising.ranks.device)
        for seen in range(begin, begin + self.block, self.batch_size):
            # There are no batches beyond the phase's end, so its last one stands in for them.
            example = self.prefetcher.make(min(seen, self.prefetcher.num_images - self.batch_size))
            now = replace(self.state.position, num_images_seen=seen)
            looked = self.denoising.look(example, now)
            if looked.isfinite().all():  # as steps without a finite loss are skipped
                total += looked
        return explained(*total.tolist())
