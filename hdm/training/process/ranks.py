"""The processes that train together, seen from one of them: who does what, and what all of them
agree on.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator

from hdm.training.process.guard import StopRequest


class CutShort(Exception):  # noqa: N818  (nothing went wrong)
    """A measurement or a picture was given up because a signal came."""


class Ranks:
    """This process among those that train together.

    Forward passes and gathers of a sharded model are collective: every rank takes part. Otherwise
    rank 0 works alone.

    Args:
        accelerator: Accelerate's handle on device, precision and processes.
        sharded: whether the model is spread over the processes.
        stop: whether a signal asked this process to stop.
    """

    def __init__(self, accelerator: Accelerator, sharded: bool, stop: StopRequest) -> None:
        self.accelerator = accelerator
        self.sharded = sharded
        self.stop = stop
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.device: torch.device = accelerator.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def takes_part(self) -> bool:
        """Whether this process measures, samples and gathers, alone or with the others."""
        return self.first or self.sharded

    def agreed(self, *wishes: bool) -> list[bool]:
        """For each wish, whether any process has it. Every process has to ask."""
        # A single process has nobody to ask, and makes no collective call.
        if self.count == 1:
            return list(wishes)
        mine = torch.tensor([float(wish) for wish in wishes], device=self.device)
        # The exchange is also a barrier: no process continues before all have said what they want.
        total = self.accelerator.reduce(mine, "sum")
        return [value > 0 for value in total.tolist()]

    def interrupted(self) -> bool:
        """Whether a signal came. Processes that compute together stop together."""
        if self.sharded:
            return self.agreed(self.stop.requested)[0]
        return self.stop.requested

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()
