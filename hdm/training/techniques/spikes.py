"""Losses that stand out from what is usual."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from hdm.training.state.incidents import SPIKE
from hdm.training.state.position import Position
from hdm.training.state.technique import Step, Technique

MEMORY = 0.98  # decay, per step, of the averages that say what is usual
EARLY = 50  # steps before which none stands out
STANDS_OUT = 8.0  # times the usual distance from the level, in the logarithm
LEAST_SPREAD = 0.01

log = logging.getLogger(__name__)


class SpikeGuard(Technique):
    """Counts and reports losses far above what they have lately been.

    Args:
        batch_size: images a step.
        warns: whether this process says so aloud.

    Its state: `loss_level` and `loss_spread`, moving averages of the loss's logarithm and of its
    distance from that level, and the number of `spikes`.
    """

    def __init__(self, batch_size: int, *, warns: bool) -> None:
        self.batch_size = batch_size
        self.warns = warns
        self.level = 0.0
        self.spread = 0.0
        self.spikes = 0

    def after_step(self, step: Step) -> list[str]:
        # A contrastive loss may be negative, and has no logarithm.
        if not step.is_finite or step.loss <= 0:
            return []
        if self._stands_out(step.loss, step.before):
            self.spikes += 1
            if self.warns:
                self._warn(step)
            return [SPIKE]
        self._learn(math.log(step.loss), step.now)
        return []

    def _stands_out(self, loss: float, before: Position) -> bool:
        if before.step - before.skipped < EARLY:
            return False
        return math.log(loss) - self.level > STANDS_OUT * max(self.spread, LEAST_SPREAD)

    def _learn(self, height: float, now: Position) -> None:
        """Take a loss's logarithm into the averages, which are plain means at first. A spike says
        nothing of what is usual.
        """
        # 1/n gives the plain mean of the first n steps; skipped steps do not count.
        weight = max(1 - MEMORY, 1 / (now.step - now.skipped))
        self.level += weight * (height - self.level)
        # The mean distance reacts less to a single outlier than a variance would.
        self.spread += weight * (abs(height - self.level) - self.spread)

    def _warn(self, step: Step) -> None:
        seen = step.now.num_images_seen
        usual = math.exp(self.level)
        log.warning(
            "step %d has a loss of %.4g where %.4g is usual: images %d to %d",
            *(step.now.step, step.loss, usual, seen - self.batch_size, seen),
        )

    def line(self, now: Position) -> dict[str, Any]:
        return {"loss_spikes": self.spikes}

    def state(self) -> dict[str, Any]:
        return {"loss_level": self.level, "loss_spread": self.spread, "spikes": self.spikes}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.level = state["loss_level"]
        self.spread = state["loss_spread"]
        self.spikes = state["spikes"]
