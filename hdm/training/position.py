"""Where training stands: all that a checkpoint holds beside tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

MEMORY, EARLY = (
    0.98,
    50,
)  # of the loss's level: decay a step, and steps before which none stands out
STANDS_OUT = 8.0  # times the usual distance from the level, in the logarithm
LEAST_SPREAD = 0.01
LATELY, LAST = 10, 3  # steps


@dataclass(frozen=True)
class Position:
    """Where training stands.

    Args:
        step: optimizer steps done, skipped ones too.
        num_images_seen: the training clock.
        skipped, skipped_in_row: steps without a finite loss or gradient.
        skipped_lately: numbers of those among the last ten steps.
        useless_lately: numbers of the steps among these whose loss was finite and useless (`incidents.is_useless`).
        gone_back: times that training went back to a checkpoint after many of these.
        loss_level, loss_spread: moving averages of the loss's logarithm and of its distance from that.
        spikes: losses that stood out.
        incidents: skipped steps, spikes and returns since the last line of metrics.
        loss_sum, cosine_sum, loss_count: of the steps since the last line of metrics.
        line: of metrics, due after this step and not written yet.
        best_step, best_loss: where the watched held-out loss was lowest; None before the first.
        worse_in_row: held-out losses since then.
        ended: before its last step, since they were too many.
    """

    step: int = 0
    num_images_seen: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    gone_back: int = 0
    loss_level: float = 0.0
    loss_spread: float = 0.0
    spikes: int = 0
    incidents: tuple[dict[str, Any], ...] = ()
    loss_sum: float = 0.0
    loss_count: int = 0
    line: dict[str, Any] | None = None
    best_step: int | None = None
    best_loss: float | None = None
    worse_in_row: int = 0
    ended: bool = False
    cosine_sum: float = 0.0
    skipped_lately: tuple[int, ...] = ()
    useless_lately: tuple[int, ...] = ()

    @property
    def lost_lately(self) -> frozenset[int]:
        """Numbers of those among the last ten steps that were skipped or had a useless loss."""
        return frozenset((*self.skipped_lately, *self.useless_lately))

    @property
    def lost_in_row(self) -> int:
        """How many of these are the last steps, one after the other."""
        return next(
            count for count in range(LATELY + 1) if self.step - count not in self.lost_lately
        )

    @property
    def exploded(self) -> bool:
        """Whether the last three steps were lost, or most of the last ten (of all where there are fewer)."""
        most = 2 * len(self.lost_lately) > min(LATELY, self.step)
        return most or self.lost_in_row >= LAST

    def after(
        self, batch_size: int, loss: float | None, cosine: float = 0.0, *, useless: bool = False
    ) -> Position:
        """One step on.

        Args:
            batch_size: images of the step.
            loss: their mean; None: the step was skipped.
            cosine: of their alignment, the mean.
            useless: whether a loss that is finite is useless (`incidents.is_useless`).
        """
        moved = replace(self, step=self.step + 1, num_images_seen=self.num_images_seen + batch_size)
        skipped, lost = (
            tuple(step for step in steps if step > moved.step - LATELY)
            for steps in (self.skipped_lately, self.useless_lately)
        )
        moved = replace(moved, skipped_lately=skipped, useless_lately=lost)
        if loss is None:
            return replace(
                moved,
                skipped=self.skipped + 1,
                skipped_in_row=self.skipped_in_row + 1,
                skipped_lately=(*skipped, moved.step),
            )
        sums = self.loss_sum + loss, self.cosine_sum + cosine
        told = replace(
            moved,
            skipped_in_row=0,
            useless_lately=(*lost, moved.step) if useless else lost,
            loss_sum=sums[0],
            cosine_sum=sums[1],
            loss_count=self.loss_count + 1,
        )
        return told if loss <= 0 else told._levelled(math.log(loss), self._stands_out(loss))

    def _stands_out(self, loss: float) -> bool:
        """Whether a step's loss is far above what losses have lately been."""
        if loss <= 0 or self.step - self.skipped < EARLY:
            return False
        return math.log(loss) - self.loss_level > STANDS_OUT * max(self.loss_spread, LEAST_SPREAD)

    def _levelled(self, height: float, spike: bool) -> Position:
        """With a loss's logarithm in the averages, which are plain means at first. A spike says nothing of what is usual."""
        if spike:
            return replace(self, spikes=self.spikes + 1)
        weight = max(1 - MEMORY, 1 / (self.step - self.skipped))
        level = self.loss_level + weight * (height - self.loss_level)
        return replace(
            self,
            loss_level=level,
            loss_spread=self.loss_spread + weight * (abs(height - level) - self.loss_spread),
        )

    def with_batches_of(self, size: int) -> Position:
        """The same place for a training with batches of that size, which has not measured anything yet."""
        return replace(
            self,
            step=self.num_images_seen // size,
            best_step=None,
            best_loss=None,
            worse_in_row=0,
            ended=False,
            skipped_lately=(),
            useless_lately=(),
        )

    def watched(self, loss: float | None, patience: int | None) -> Position:
        """The same with a held-out loss taken into account; one that is not finite (None) is no better than any.

        Args:
            patience: so many in a row that are not lower end the phase; None: none do.
        """
        if loss is not None and (self.best_loss is None or loss < self.best_loss):
            return replace(self, best_step=self.step, best_loss=loss, worse_in_row=0)
        worse = self.worse_in_row + 1
        return replace(self, worse_in_row=worse, ended=patience is not None and worse >= patience)
