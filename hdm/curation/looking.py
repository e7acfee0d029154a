"""Make several outputs about the downloaded pictures from one decoding.

Each `Look` has an output of its own, so adding one does not make the others again. Outputs that are
missing at the same time are made from the same decoded pictures.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hdm import parts
from hdm.curation.downloaded import Picture, Pictures, num_items
from hdm.curation.look import EMBED_SIDE_PX, look
from hdm.curation.settings import Pipeline
from hdm.data.tables import num_shards, shard_files, shard_name
from hdm.errors import InputError
from hdm.keys import Key
from hdm.parts import Files, Folders, Part, Step, drafts_of
from hdm.progress import Tracker
from hdm.store import Draft, Folder, Identity, Output, Outputs, Store


class Notes(Protocol):
    """A look with its model loaded."""

    def note(self, batch: Sequence[Picture]) -> Mapping[Key, Any]:
        """Results for a batch by key. The batch includes pictures that cannot be decoded."""
        ...

    def write(
        self, folder: Folder, number: int, pictures: Sequence[Picture], noted: Mapping[Key, Any]
    ) -> None:
        """Write the tables of one shard."""
        ...


class Look(ABC):
    """How one output is made from decoded pictures. It can be pickled.

    Attributes:
        name: of the output.
        what: name of the work in the progress display.
        kinds: kinds of tables that it writes for each shard of the download.
        measured: whether it needs what `hdm.curation.look` measures; otherwise it needs the pixels.
    """

    name: str
    what: str
    kinds: tuple[str, ...]
    measured = False

    def files(self, number: int) -> tuple[str, ...]:
        """The tables of a shard of the download."""
        return tuple(shard_name(kind, number) for kind in self.kinds)

    @abstractmethod
    def identify(self, pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
        """What the output depends on."""

    @abstractmethod
    def load(self, pipeline: Pipeline) -> Notes:
        """Load the model, if it has one."""

    def tell(self, counts: Mapping[str, int]) -> None:  # noqa: B027  (most have nothing to say)
        """Log what is worth knowing about the finished output."""

    def make(
        self,
        pipeline: Pipeline,
        identity: Identity,
        inputs: Outputs,
        store: Store,
        *,
        also: Sequence[Look] = (),
    ) -> Output:
        """Look at every downloaded item; large pictures are reduced for models.

        Args:
            also: other looks. The store's missing ones are made from the same decoding, each as an
                output of its own.
        """
        others = []
        for other in also:
            # What it lacks is reported when it is made itself.
            with contextlib.suppress(InputError):
                others.append(other.identify(pipeline, identity.inputs))
        with drafts_of(store, identity, others) as drafts:
            looks = tuple(one for one in (self, *also) if one.name in drafts)
            step = Looking(pipeline, inputs["download"], looks)
            return parts.make(step, drafts.values(), pipeline.execution, store)[0]


@dataclass
class _Tools:
    pictures: Pictures
    notes: dict[str, Notes]


@dataclass(frozen=True)
class Looking(Step[int, _Tools]):
    """Look at a download, shard by shard."""

    pipeline: Pipeline
    download: Output
    looks: tuple[Look, ...]

    unit = "pictures"

    @property
    def what(self) -> str:
        return " ".join(one.what for one in self.looks)

    def plan(self) -> Iterator[Part[int]]:
        for number in range(num_shards(self.download, "samples")):
            files = {one.name: one.files(number) for one in self.looks}
            reads = {"download": self._reads(number)}
            yield Part(number, files, num_items(self.download, number), reads)

    def _reads(self, number: int) -> tuple[str, ...]:
        """The files of a shard on which the looks depend."""
        pictures, samples = shard_files(number)
        # What is measured of pixels depends on no caption; the tar also has the keys.
        return (pictures,) if all(one.measured for one in self.looks) else (pictures, samples)

    def lacking(self, part: Part[int], files: Files) -> Part[int]:
        """Leave out the looks whose tables are already there."""
        return replace(part, files={name: part.files[name] for name in files})

    @contextmanager
    def open(self) -> Iterator[_Tools]:
        measured = [one.measured for one in self.looks]
        # Only models look at the reduced picture.
        options = {
            "measured": any(measured),
            "reduced_to_px": None if all(measured) else EMBED_SIDE_PX,
        }
        # Load models first: if one cannot be loaded, no decoding process is started.
        notes = {one.name: one.load(self.pipeline) for one in self.looks}
        with Pictures(self.pipeline, self.download, look, **options) as pictures:
            yield _Tools(pictures, notes)

    def make_part(self, part: Part[int], folders: Folders, tools: _Tools, bar: Tracker) -> None:
        pictures: list[Picture] = []
        noted: dict[str, dict[Key, Any]] = {name: {} for name in part.files}
        for batch in tools.pictures.batches(part.task):
            # Each model sees the batch before its pixels are dropped.
            for name in noted:
                noted[name] |= tools.notes[name].note(batch)
            pictures += batch
            bar.advance(len(batch))
        for name, results in noted.items():
            tools.notes[name].write(folders[name], part.task, pictures, results)

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        for one in self.looks:
            if one.name == draft.identity.name:
                one.tell(draft.counts())
        return {}
