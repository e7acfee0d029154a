"""Where training stands: all that a checkpoint holds beside tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

LATELY, LAST = 10, 3  # steps
BLOCK_IMAGES = (
    64  # at least: what is explained of fewer says more about their times than about the weights
)


@dataclass(frozen=True)
class Position:
    """Where training stands.

    Args:
        step: optimizer steps done, skipped ones too.
        num_images_seen: the training clock.
        skipped, skipped_in_row: steps without a finite loss or gradient.
        skipped_lately: numbers of those among the last ten steps.
        useless_lately: numbers of the steps among these whose loss was finite and useless
            (`incidents.is_useless`).
        gone_back: times that training went back to a checkpoint after many of these.
        incidents: skipped steps, spikes and returns since the last line of metrics.
        loss_sum, loss_count: of the steps since the last line of metrics.
        line: of metrics, due after this step and not written yet.
        ended: before its last step.
        most_explained: the largest share of the target that blocks of steps explained, as
            `explained` has it, or that the weights did which training began with; None before that
            is known.
        block_loss, block_of_nothing, block_images: of the block that is not full yet.
    """

    step: int = 0
    num_images_seen: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    gone_back: int = 0
    incidents: tuple[dict[str, Any], ...] = ()
    loss_sum: float = 0.0
    loss_count: int = 0
    line: dict[str, Any] | None = None
    ended: bool = False
    skipped_lately: tuple[int, ...] = ()
    useless_lately: tuple[int, ...] = ()
    most_explained: float | None = None
    block_loss: float = 0.0
    block_of_nothing: float = 0.0
    block_images: int = 0

    @property
    def lost_lately(self) -> frozenset[int]:
        """Numbers of the steps among the last ten that were skipped or had a useless loss."""
        return frozenset((*self.skipped_lately, *self.useless_lately))

    @property
    def lost_in_row(self) -> int:
        """The number of consecutive lost steps up to the last one."""
        lost = self.lost_lately
        count = 0
        while self.step - count in lost:
            count += 1
        return count

    @property
    def exploded(self) -> bool:
        """Whether the last three steps were lost, or most of the last ten (of all where there are
        fewer).
        """
        # A single lost step says nothing: training goes on after it.
        most = 2 * len(self.lost_lately) > min(LATELY, self.step)
        return most or self.lost_in_row >= LAST

    def after(self, batch_size: int, loss: float | None, *, useless: bool = False) -> Position:
        """One step on.

        Args:
            batch_size: images of the step.
            loss: their mean; None: the step was skipped.
            useless: whether a loss that is finite is useless (`incidents.is_useless`).
        """
        moved = replace(self, step=self.step + 1, num_images_seen=self.num_images_seen + batch_size)
        # Step numbers, unlike flags, show which entries are no longer recent.
        first = moved.step - LATELY
        skipped = tuple(step for step in self.skipped_lately if step > first)
        lost = tuple(step for step in self.useless_lately if step > first)
        moved = replace(moved, skipped_lately=skipped, useless_lately=lost)
        if loss is None:
            return replace(
                moved,
                skipped=self.skipped + 1,
                skipped_in_row=self.skipped_in_row + 1,
                skipped_lately=(*skipped, moved.step),
            )
        return replace(
            moved,
            skipped_in_row=0,
            useless_lately=(*lost, moved.step) if useless else lost,
            loss_sum=self.loss_sum + loss,
            loss_count=self.loss_count + 1,
        )

    def explaining(self, batch_size: int, loss: float, of_nothing: float) -> Position:
        """The same with a step's loss, and that of predicting zeros for it, in the block of
        steps.
        """
        # Steps are measured in blocks: a few samples say more about their times than about the
        # weights.
        now = replace(
            self,
            block_loss=self.block_loss + loss * batch_size,
            block_of_nothing=self.block_of_nothing + of_nothing * batch_size,
            block_images=self.block_images + batch_size,
        )
        if now.block_images < BLOCK_IMAGES:
            return now
        share = explained(now.block_loss, now.block_of_nothing)
        most = share if self.most_explained is None else max(self.most_explained, share)
        return replace(
            now, most_explained=most, block_loss=0.0, block_of_nothing=0.0, block_images=0
        )

    def with_batches_of(self, size: int) -> Position:
        """The same place for a training with batches of that size, which has not measured anything
        yet.
        """
        return replace(
            self,
            step=self.num_images_seen // size,
            ended=False,
            skipped_lately=(),
            useless_lately=(),
            most_explained=None,
            block_loss=0.0,
            block_of_nothing=0.0,
            block_images=0,
        )

    def noting(self, incident: dict[str, Any]) -> Position:
        """The same with an incident for the next line of metrics."""
        return replace(self, incidents=(*self.incidents, incident))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Position:
        """From a checkpoint's values, among which are those of techniques."""
        # Checkpoints of earlier versions lack newer fields, which keep their defaults.
        return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})


def explained(loss: float, of_nothing: float) -> float:
    """Share of the target that predictions explain: 1 where they are right, 0 where they are no
    better than zeros.
    """
    return 1 - loss / of_nothing if of_nothing > 0 else 0.0
