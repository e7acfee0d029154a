"""The weights with the lowest held-out loss so far, on disk until the phase is done."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from hdm.sharding import gathered
from hdm.training import checkpoint
from hdm.training.checkpoint import load_weights

FOLDER = "best"


class Best:
    """A folder a step, of those steps that a checkpoint may still lead back to.

    Args:
        scratch: of the phase.
        models: name → model, what is kept of a step.
        step: the best one so far, as the checkpoint has it that training goes on from.
    """

    def __init__(self, scratch: Path, models: dict[str, nn.Module], step: int | None) -> None:
        self.folder, self.models = scratch / FOLDER, models
        self._in_checkpoints = [step]

    def add(self, step: int, *, writes: bool) -> None:
        """Write down the models as they are after a step; a process that does not write helps to put sharded ones together."""
        found = {name: gathered(model.state_dict()) for name, model in self.models.items()}
        if not writes:
            return
        checkpoint.write_folder(self._of(step), found, {}, {"step": step})

    def saved(self, step: int | None) -> None:
        """A checkpoint was made whose best step is this one: what neither it nor the one before needs is dropped.

        What has been added since it was taken, while it was being written, stays.
        """
        self._in_checkpoints = [self._in_checkpoints[-1], step]
        needed = {self._of(wanted) for wanted in self._in_checkpoints if wanted is not None}
        for path in self.folder.glob("[0-9]*"):
            if path not in needed and step is not None and path < self._of(step):
                shutil.rmtree(path)

    def load(self, step: int) -> None:
        """Bring a step's weights back into the models.

        Raises:
            DamagedError: they are not what was written.
        """
        found = checkpoint.read(self._of(step))
        for name, model in self.models.items():
            load_weights(model, found.tensors(name), found.path)

    def _of(self, step: int) -> Path:
        return self.folder / f"{step:08d}"
