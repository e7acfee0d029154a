"""Held-out losses, every so many steps and at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from hdm.data.loader import Loader
from hdm.training.measures.validation import Losses, Measurement
from hdm.training.process.ranks import CutShort
from hdm.training.state.position import Position
from hdm.training.state.technique import Technique
from hdm.training.state.trainable import Trainable


@dataclass(eq=False)
class HeldOut(Technique):
    """Measures the averaged weights, and the raw ones if asked to.

    Args:
        measurement: how losses are measured.
        trainable: what is trained.
        loader: makes the loader of the held-out pictures when it is first needed.
        every: steps between two; None: at the end alone.
        num_steps: of the phase.
        raw: whether the raw weights are measured too.
    """

    measurement: Measurement
    trainable: Trainable
    loader: Callable[[], Loader]
    every: int | None
    num_steps: int
    _: KW_ONLY
    raw: bool

    def due(self, now: Position) -> bool:
        is_last = now.step == self.num_steps
        return is_last or (self.every is not None and now.step % self.every == 0)

    def measure(self, now: Position) -> dict[str, Any]:
        if not self.due(now):
            return {}
        averaged = self._losses(self.trainable.averaged).held_out()
        if not self.raw:
            return averaged
        # The raw weights are measured without dropout, like the average.
        model = self.trainable.model.eval()
        try:
            raw = self._losses(model).held_out()
        finally:
            model.train()
        return {**averaged, **{f"raw_{name}": value for name, value in raw.items()}}

    def _losses(self, model: Any) -> Losses:
        losses = self.measurement.losses(model, self.loader())
        if losses is None:
            raise CutShort
        return losses
