"""What a phase leaves behind while it goes, beside its checkpoints: files that lie in its scratch until they go into its output.

A name tells the step, and what is written under it is the same however often training was stopped before: a phase that goes on from a
checkpoint writes again what comes after it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hdm.files import written_aside
from hdm.models.tensors import num_bytes, save_tensors
from hdm.sharding import gathered
from hdm.training.power_ema import snapshot_name

FOLDER = "milestones"


def even_steps(num_steps: int, count: int) -> frozenset[int]:
    """`count` steps of a phase, evenly, the last one among them; fewer where it has fewer."""
    return frozenset(-(-num_steps * number // count) for number in range(1, count + 1))


class Milestones:
    """The files, by name.

    Args:
        scratch: of the phase.
    """

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / FOLDER

    @property
    def names(self) -> list[str]:
        """Of the files, in order."""
        return sorted(path.name for path in self.folder.glob("[!.]*"))

    def add_snapshots(
        self, step: int, tracks: Mapping[str, Mapping[str, Tensor]], *, writes: bool
    ) -> None:
        """Write down averages as they are after a step; a process that does not write helps to put sharded ones together."""
        for track, tensors in tracks.items():
            found = gathered(tensors)
            if writes:
                path = self.folder / snapshot_name(track, step)
                with written_aside(path, num_bytes(found)) as aside:
                    save_tensors(aside, found)

    def hand_over(self, folder: Path) -> list[str]:
        """Copy the files to a folder; their names. They stay, so that a kill later on costs nothing."""
        for name in self.names:
            target = folder / name
            try:
                target.hardlink_to(self.folder / name)
            except OSError:  # a file system without links
                shutil.copyfile(self.folder / name, target)
        return self.names
