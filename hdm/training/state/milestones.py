"""What a phase writes during training, apart from checkpoints: files that stay in its scratch until
they go into its output.

    milestones/
        ema-0.05-00000100.safetensors    a name tells the step
        .ema-0.05-00000100.safetensors.xxh3    its XXH3; files of a release before 0.2 have none
        <file>.damaged                   what was found not to be what was written

What is written under a name is the same however often training was stopped before: a phase that
goes on from a checkpoint writes again what comes after it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from hdm.files import fast_hash, write_bytes, written_aside
from hdm.model_files.power_ema import snapshot_name
from hdm.model_files.tensors import num_bytes, save_tensors
from hdm.sharding import gathered
from hdm.store import DAMAGED

FOLDER = "milestones"

log = logging.getLogger(__name__)


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

    @contextlib.contextmanager
    def write(self, name: str, needed_bytes: int | None = None) -> Iterator[Path]:
        """Write one file, to the path given; errors as `written_aside`."""
        with written_aside(self.folder / name, needed_bytes) as aside:
            yield aside
            # A kill between the two costs nothing: no checkpoint is from after it, so that the file
            # is written again.
            write_bytes(self._hash_file(name), fast_hash(aside).encode())

    def add_snapshots(
        self, step: int, tracks: Mapping[str, Mapping[str, Tensor]], *, writes: bool
    ) -> None:
        """Write down averages as they are after a step; a process that does not write helps to put
        sharded ones together.
        """
        for track, tensors in tracks.items():
            gathered_tensors = gathered(tensors)
            if writes:
                with self.write(snapshot_name(track, step), num_bytes(gathered_tensors)) as path:
                    save_tensors(path, gathered_tensors)

    def hand_over(self, folder: Path) -> tuple[list[str], list[str]]:
        """Copy the files to a folder; they stay, so that a kill later on costs nothing.

        Returns:
            Their names, and the names of those that are not what was written: set aside, since only
            training could make them again.
        """
        for path in self._files():
            if self._is_whole(path):
                _copy(path, folder / path.name)
            else:
                log.warning(
                    "%s is not what was written; set aside, and left out of the output", path
                )
                path.replace(path.with_name(path.name + DAMAGED))
        names = [path.name for path in self._files()]
        damaged = (path.stem for path in self.folder.glob(f"[!.]*{DAMAGED}"))
        return names, sorted(set(damaged) - set(names))

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[!.]*") if path.suffix != DAMAGED)

    def _is_whole(self, path: Path) -> bool:
        """Whether a file has the hash that was kept of it, if there is one."""
        kept = self._hash_file(path.name)
        return not kept.exists() or kept.read_bytes() == fast_hash(path).encode()

    def _hash_file(self, name: str) -> Path:
        return self.folder / f".{name}.xxh3"


def _copy(path: Path, target: Path) -> None:
    try:
        # A hard link is a second name for the same bytes and takes no space.
        target.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, target)
