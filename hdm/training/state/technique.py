"""What training can do beside its steps. A technique keeps its own state, which checkpoints
hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hdm.data.batch import Batch
from hdm.training.prefetcher import Example
from hdm.training.state.position import Position


@dataclass(frozen=True)
class Step:
    """What came of an optimizer step.

    Args:
        before, now: where training stood before it and stands after it.
        example: this process's share of the batch.
        loss: mean over the global batch.
        of_nothing: the loss of predicting zeros.
        norm: of the gradient, before clipping.
        terms: means of the terms that techniques added, by name.
        is_finite: loss and gradient are; otherwise the step was skipped.
    """

    before: Position
    now: Position
    example: Example
    loss: float
    of_nothing: float
    norm: float
    terms: Mapping[str, float]
    is_finite: bool


class Technique:
    """A hook that is not overridden does nothing. Every rank calls all of them, technique by
    technique, in one order.
    """

    weights: Mapping[str, float] = {}
    """Terms that it adds to the loss, by name, and how they weigh. The model that `wrap` gave
    returns them, (B,) each, after its prediction."""
    ended: bool = False
    """Whether the phase ends before its last step."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The denoiser as training shall call it."""
        return model

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the wrapped denoiser takes beside its usual arguments."""
        return {}

    def before_micro_batch(self, now: Position, first: int) -> None:
        """Called before each forward pass; `first` is the number of its first sample in the global
        batch.
        """

    def update(self, factor: float) -> None:
        """Update own parameters, at `factor` times the full rate. Skipped steps do not call it."""

    def after_step(self, step: Step) -> list[str]:
        """Look at a step; the names of incidents to write down."""
        return []

    def line(self, now: Position) -> dict[str, Any]:
        """What the line of metrics that is due says of the steps since the last one."""
        return {}

    def due(self, now: Position) -> bool:
        """Whether something is to be measured or written after this step, beside the usual line of
        metrics.
        """
        return False

    def measure(self, now: Position) -> dict[str, Any]:
        """Measure what is due, on the ranks that take part; more for the line of metrics.

        Raises:
            CutShort: a signal came. It is due again when training resumes.
        """
        return {}

    def conclude(self, now: Position, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Act on what all techniques measured, which only rank 0 may know; more for the line of
        metrics.
        """
        return {}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Named sets of tensors for a checkpoint, gathered from all ranks."""
        return {}

    def load(self, tensors: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Bring back these sets, asked for by name."""

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint, under names that no other technique uses."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Bring these back from all values of a checkpoint."""

    def adopt(self, state: Mapping[str, Any]) -> None:
        """As `restore`, from a checkpoint of a training with other settings."""
        self.restore(state)

    def on_saved(self) -> Callable[[], None]:
        """Asked while a checkpoint is taken: what to do, in a thread, once it is on disk."""
        return lambda: None

    def finish(self) -> bool:
        """Called after the last step; whether other weights than the last ones come out."""
        return False
