"""Which kept pictures are for training, and which are kept out of it. Copies share a split, and a
store remembers each.
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
    """Splits of pictures in order, and how many of them had another before: their family joins
    two.
    """

    splits: list[str]
    num_moved: int


def assign_splits(
    sha256: Sequence[str],
    families: Sequence[int] | np.ndarray,
    known: Sequence[str | None],
    shares: Shares,
) -> Assigned:
    """A split for every picture, the same for all of a family.

    A family in which splits are known takes that split; where they differ, it is for training, in
    which some of it has been. Else the content of its first picture decides: whose hash, as a
    number in [0, 1), lies under `held_out` is held out, under `held_out + validation` for
    validation. In a small set a share may thus get nothing; the new training family that comes
    nearest is then taken.

    Args:
        sha256: of each picture's pixels, as hex digits, the best pictures first.
        families: (N,) the same number for pictures that are to share a split.
        known: each picture's split, as far as it has one.
        shares: of what is kept out.
    """
    found: dict[int, set[str]] = {}
    place: dict[int, float] = {}
    for digest, family, split in zip(sha256, families, known, strict=True):
        place.setdefault(family, int(digest[:13], 16) / 16**13)
        found.setdefault(family, set()).update([split] if split else [])
    fresh = [family for family, splits in found.items() if not splits]
    chosen = {
        family: splits.copy().pop() if len(splits) == 1 else TRAIN
        for family, splits in found.items()
    }
    chosen |= {family: shares.split(place[family]) for family in fresh}
    for split, share in ((HELD_OUT, shares.held_out), (VALIDATION, shares.validation)):
        spare = [(place[family], family) for family in fresh if chosen[family] == TRAIN]
        wanted = share > 0 and split not in chosen.values() and len(chosen) >= MIN_FAMILIES
        if wanted and spare:
            chosen[min(spare)[1]] = split
    splits = [chosen[family] for family in families]
    moved = sum(old is not None and old != new for old, new in zip(known, splits, strict=True))
    return Assigned(splits, moved)


class SplitMemory:
    """The splits that a store's pictures have been given, by the hash of their pixels, for each
    pair of shares.

    Raises:
        DamagedError: from `recall` and `remember`: the file is not what was written.
        HdmError: from `remember`: it cannot be written.
    """

    def __init__(self, root: Path, shares: Shares) -> None:
        name = f"validation-{shares.validation:g}-held_out-{shares.held_out:g}"
        self.path = root / "splits" / f"{name}.parquet"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other run reads and writes it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def recall(self, sha256: pa.Array) -> list[str | None]:
        """Each picture's split, None for a new one."""
        if not self.path.exists():
            return [None] * len(sha256)
        table = self._read()
        rows = pc.index_in(sha256, value_set=table["sha256"])
        return table["split"].take(rows).to_pylist()

    def remember(self, sha256: pa.Array, splits: Sequence[str]) -> None:
        """Keep these splits, and those of all other pictures as they are."""
        new = pa.table({"sha256": sha256, "split": pa.array(splits, pa.string())})
        if self.path.exists():
            old = self._read()
            others = pc.invert(pc.is_in(old["sha256"], value_set=sha256))
            new = pa.concat_tables([old.filter(others), new])
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
