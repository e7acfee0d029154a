"""Everything that a step changes, and a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from hdm.sharding import gathered
from hdm.training.state.checkpoint import Checkpoint
from hdm.training.state.optimizers import Optimizers
from hdm.training.state.position import Position
from hdm.training.state.technique import Technique
from hdm.training.state.trainable import Trainable


@dataclass
class State:
    """What is trained, by what, and where that stands.

    Args:
        trainable: the weights and their average.
        optimizers: of the weights.
        techniques: in the order in which they are called.
        position: steps, images and incidents so far.
    """

    trainable: Trainable
    optimizers: Optimizers
    techniques: Sequence[Technique]
    position: Position = field(default_factory=Position)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Named sets; of a sharded model whole copies on rank 0, gathered by all ranks."""
        sets = {**self.trainable.tensors(), "optimizer": gathered(self.optimizers.tensors())}
        for technique in self.techniques:
            # Names of sets become file names in the checkpoint, so they have to differ.
            sets |= technique.tensors()
        return sets

    def load_tensors(self, checkpoint: Checkpoint) -> None:
        """Weights, averages, the optimizers' state and that of techniques."""
        self.trainable.load(checkpoint.tensors, checkpoint.path)
        self.optimizers.load(checkpoint.tensors("optimizer"))
        for technique in self.techniques:
            technique.load(checkpoint.tensors)

    def values(self) -> dict[str, Any]:
        """The position, and beside its fields the plain values of techniques."""
        values = asdict(self.position)
        for technique in self.techniques:
            values |= technique.state()
        return values

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was taken."""
        values = checkpoint.state["position"]
        self.load_tensors(checkpoint)
        self.position = Position.of(values)
        for technique in self.techniques:
            technique.restore(values)

    def adopt(self, checkpoint: Checkpoint, batch_size: int) -> None:
        """Go on from a checkpoint of a training with other settings, in batches of this size."""
        values = checkpoint.state["position"]
        self.load_tensors(checkpoint)
        # The clock counts images, so steps are counted anew for another batch size.
        self.position = Position.of(values).with_batches_of(batch_size)
        for technique in self.techniques:
            technique.adopt(values)
