"""Assign kept pictures to the splits train, validation and held_out. Copies share a split, and a
store remembers every picture's split (docs/decisions/0006-splits-are-remembered.md).
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hdm.errors import DamagedError
from hdm.files import written_aside

MIN_FAMILIES = 3  # with fewer there is nothing to spare
TRAIN, VALIDATION, HELD_OUT = SPLITS = ("train", "validation", "held_out")


@dataclass(frozen=True)
class Shares:
    """Of the kept pictures, in [0, 1)."""

    validation: float
    held_out: float

    def split(self, place: float) -> str:
        """The split of a family whose place is in [0, 1)."""
        if place < self.held_out:
            return HELD_OUT
        return VALIDATION if place < self.held_out + self.validation else TRAIN


@dataclass(frozen=True)
class Assigned:
    """Splits of pictures in order, and the positions of those that had another split before because
    their family joins two.
    """

    splits: list[str]
    moved: list[int]


def assign_splits(
    sha256: Sequence[str],
    families: Sequence[int] | np.ndarray,
    known: Sequence[str | None],
    shares: Shares,
) -> Assigned:
    """Assign a split to every picture, the same to all of a family.

    A family with one known split keeps it. A family with several goes to training, which has seen
    part of it already. For a new family the hash of its first picture decides: as a number in
    [0, 1), it is held out below `held_out` and for validation below `held_out + validation`. If a
    small set thus leaves a split empty, the new training family with the lowest hash goes there.

    Args:
        sha256: of each picture's pixels, as hex digits, the best pictures first.
        families: (N,) the same number for pictures that are to share a split.
        known: each picture's split; None for a new one.
        shares: of validation and held out.
    """
    known_splits: dict[int, set[str]] = {}
    place: dict[int, float] = {}
    for digest, family, split in zip(sha256, families, known, strict=True):
        # 13 hex digits are 52 bits, which a float64 holds exactly.
        place.setdefault(family, int(digest[:13], 16) / 16**13)
        known_splits.setdefault(family, set())
        if split:
            known_splits[family].add(split)
    # First each family's own split, then a family for a split that would stay empty.
    fresh = []
    split_of = {}
    for family, before in known_splits.items():
        if not before:
            fresh.append(family)
            split_of[family] = shares.split(place[family])
        elif len(before) == 1:
            (split_of[family],) = before
        else:
            split_of[family] = TRAIN
    for split, share in ((HELD_OUT, shares.held_out), (VALIDATION, shares.validation)):
        spare = [(place[family], family) for family in fresh if split_of[family] == TRAIN]
        is_empty = share > 0 and split not in split_of.values()
        if is_empty and spare and len(split_of) >= MIN_FAMILIES:
            _, nearest = min(spare)
            split_of[nearest] = split
    splits = [split_of[family] for family in families]
    moved = []
    for position, (old, new) in enumerate(zip(known, splits, strict=True)):
        if old is not None and old != new:
            moved.append(position)
    return Assigned(splits, moved)


class SplitMemory:
    """A store's file of assigned splits by the hash of a picture's pixels, one for each pair of
    shares.

    Raises:
        DamagedError: from `recall` and `remember`: the file is not what was written.
        HdmError: from `remember`: it cannot be written.
    """

    def __init__(self, root: Path, shares: Shares) -> None:
        # The shares are part of the name, so that other shares assign anew (decision 6).
        name = f"validation-{shares.validation:g}-held_out-{shares.held_out:g}"
        self.path = root / "splits" / f"{name}.parquet"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the file's lock, waiting until no other run reads and writes it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A file of its own: the table is replaced by renaming, and a lock on it would stay with the
        # old file.
        with self.path.with_suffix(".lock").open("a") as lock:
            # Between reading and writing, another run's new splits would be lost.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def recall(self, sha256: pa.Array) -> list[str | None]:
        """Each picture's split, None for a new one."""
        if not self.path.exists():
            return [None] * len(sha256)
        table = self._read()
        rows = pc.index_in(sha256, value_set=table["sha256"])
        splits: list[str | None] = table["split"].take(rows).to_pylist()
        return splits

    def remember(self, sha256: pa.Array, splits: Sequence[str]) -> None:
        """Store these splits and keep those of all other pictures."""
        new = pa.table({"sha256": sha256, "split": pa.array(splits, pa.string())})
        if self.path.exists():
            old = self._read()
            others = pc.invert(pc.is_in(old["sha256"], value_set=sha256))
            new = pa.concat_tables([old.filter(others), new])
        # One thread, so that "first" is the first in order.
        new = new.group_by("sha256", use_threads=False).aggregate([("split", "first")])
        table = new.rename_columns({"split_first": "split"}).sort_by("sha256")
        with written_aside(self.path) as path:
            pq.write_table(table, path, compression="zstd", write_page_checksum=True)

    def _read(self) -> pa.Table:
        try:
            return pq.read_table(self.path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(
                f"the remembered splits cannot be read: {error}",
                where=self.path,
                do="restore the file from a backup, or remove it to assign all splits anew",
            ) from error
