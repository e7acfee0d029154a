"""The weights with the lowest held-out loss so far, on disk until the phase is done; and the end of
a phase that grows worse.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hdm.errors import InputError
from hdm.training.process.ranks import Ranks
from hdm.training.state import checkpoint
from hdm.training.state.position import Position
from hdm.training.state.technique import Technique
from hdm.training.state.trainable import Trainable
from hdm.training.techniques.held_out import HeldOut

FOLDER = "best"


class Best:
    """A folder a step, of those steps that a checkpoint may still lead back to.

    Args:
        scratch: of the phase.
        trainable: what is kept of a step are its tensors.
    """

    def __init__(self, scratch: Path, trainable: Trainable) -> None:
        self.folder = scratch / FOLDER
        self.trainable = trainable
        self._in_checkpoints: list[int | None] = [None]

    def begin(self, step: int | None) -> None:
        """Go on from a checkpoint whose best step is this one."""
        self._in_checkpoints = [step]

    def add(self, step: int, *, writes: bool) -> None:
        """Write down the weights as they are after a step; a process that does not write helps to
        put sharded ones together.
        """
        tensors = self.trainable.tensors()
        if writes:
            checkpoint.write_folder(self._of(step), tensors, {}, {"step": step})

    def saved(self, step: int | None) -> None:
        """A checkpoint was made whose best step is this one: what neither it nor the one before
        needs is dropped.

        What has been added since it was taken, while it was being written, stays.
        """
        self._in_checkpoints = [self._in_checkpoints[-1], step]
        # Training may resume from either of the two checkpoints that are kept.
        needed = {self._of(wanted) for wanted in self._in_checkpoints if wanted is not None}
        # Later steps stay, since they came while the checkpoint was being written.
        for path in self.folder.glob("[0-9]*"):
            if path not in needed and step is not None and path < self._of(step):
                shutil.rmtree(path)

    def load(self, step: int) -> None:
        """Bring a step's weights back.

        Raises:
            DamagedError: they are not what was written.
        """
        saved = checkpoint.read(self._of(step))
        self.trainable.load(saved.tensors, saved.path)

    def _of(self, step: int) -> Path:
        return self.folder / f"{step:08d}"


@dataclass(eq=False)
class BestSoFar(Technique):
    """Watches a held-out loss: keeps the weights where it was lowest, and ends a phase in which it
    stays worse.

    Args:
        held_out: measures the loss.
        watched: its name among what is measured.
        files: where the best weights go; None: they are not kept.
        patience: held-out losses in a row, none the lowest, that end the phase; None: none do.
        ranks: rank 0 knows the loss, all follow.

    Its state: `best_step` and `best_loss`, None before the first, and how many since were
    `worse_in_row`.

    Raises:
        InputError: no pictures are held out.
    """

    held_out: HeldOut
    watched: str
    files: Best | None
    patience: int | None
    ranks: Ranks
    best_step: int | None = field(default=None, init=False)
    best_loss: float | None = field(default=None, init=False)
    worse_in_row: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not len(self.held_out.loader()):
            raise InputError(
                "train.keep: best and train.patience need pictures held out for validation",
                where="filter.validation",
                do="raise it",
            )

    def conclude(self, now: Position, measured: Mapping[str, Any]) -> dict[str, Any]:
        if not self.held_out.due(now):
            return {}
        if self.ranks.first:
            # After a lost step the averages may be whole beside weights that are not.
            self._watch(now.step, None if now.lost_in_row else measured[self.watched])
        # Only rank 0 knows the loss, but all ranks keep weights and end.
        self.ended, is_best = self.ranks.agreed(self.ended, self.best_step == now.step)
        if is_best:
            # Every rank writes the best step into its state.
            self.best_step = now.step
            if self.files is not None and self.ranks.takes_part:
                self.files.add(now.step, writes=self.ranks.first)
        return {"best_step": self.best_step}

    def _watch(self, step: int, loss: float | None) -> None:
        """Take a loss into account; one that is not finite (None) is no better than any."""
        if loss is not None and (self.best_loss is None or loss < self.best_loss):
            self.best_step = step
            self.best_loss = loss
            self.worse_in_row = 0
        else:
            # An equal loss is no improvement.
            self.worse_in_row += 1
            self.ended = self.patience is not None and self.worse_in_row >= self.patience

    def state(self) -> dict[str, Any]:
        return {
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "worse_in_row": self.worse_in_row,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best_step = state["best_step"]
        self.best_loss = state["best_loss"]
        self.worse_in_row = state["worse_in_row"]
        if self.files is not None:
            self.files.begin(self.best_step)

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Another training's losses say nothing of this one's."""

    def on_saved(self) -> Callable[[], None]:
        if self.files is None:
            return super().on_saved()
        return partial(self.files.saved, self.best_step)

    def finish(self) -> bool:
        if self.files is None or self.best_step is None:
            return False
        if self.ranks.takes_part:
            self.files.load(self.best_step)
        return True
