"""What a stage has to give: the outputs that it makes, and what of its settings cannot work.

Another package adds a stage by an `AddedStage` that an entry point of the group `hdm.stages` names.
A pipeline has it where `stages.NAME` holds its settings; `{}` are its defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hdm.errors import InputError
from hdm.stage_list import Stage
from hdm.store import Identity, Output, Outputs, Store

Pipeline = Any
"""`hdm.config.Pipeline`, of which each stage reads another part."""
Digests = Mapping[str, str]
SMALL_BYTES = 8
"""Of a row of a small table as it lies compressed in the store: a key and a number."""
Preflight = Callable[[Pipeline, Outputs], Iterator[InputError]]


@dataclass(frozen=True)
class Numbers:
    """How much there is of what outputs are made from, as far as `hdm plan` knows.

    Args:
        pictures: that the source holds.
        kept: by the filter; before it has run, all.
        captions: of the kept pictures.
        images: that the evaluation generates.
    """

    pictures: int
    kept: int
    captions: int
    images: int


@dataclass(frozen=True)
class Size:
    """What an output takes, for `hdm plan`.

    Args:
        items: pictures, captions or images that go through.
        bytes: of each, in the store.
        flops: for each, two a multiplication and addition; None: not known.
        tokens: length of the sequences on which they are done.
    """

    items: int
    bytes: float = 0.0
    flops: float | None = 0.0
    tokens: float = 1.0


@dataclass(frozen=True)
class OutputStep:
    """One output: its name, the names of its inputs, how to identify and how to make it.

    `size` says what it takes; None: `hdm plan` counts it by itself, or says that it does not.
    """

    name: str
    inputs: tuple[str, ...]
    identify: Callable[[Pipeline, Digests], Identity]
    make: Callable[[Pipeline, Identity, Outputs, Store], Output]
    size: Callable[[Pipeline, Numbers], Size] | None = None

    @property
    def stage(self) -> str:
        return self.name.split(".")[0]


def _no_problems(_: Pipeline, __: Outputs) -> Iterator[InputError]:
    return iter(())


@dataclass(frozen=True)
class StageWork:
    """What is done in a stage.

    Args:
        outputs: the steps of a pipeline in this stage, each after its inputs, given the names of
            the outputs before it; none where the pipeline has no use for the stage.
        preflight: what of the settings cannot work, given the outputs that the stages before have
            made already.
    """

    outputs: Callable[[Pipeline, Collection[str]], Iterable[OutputStep]]
    preflight: Preflight = _no_problems


@dataclass(frozen=True, kw_only=True)
class AddedStage(Stage):
    """A stage of another package; `settings` and `after` must be given."""

    work: StageWork
