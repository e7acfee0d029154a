"""What a stage must provide: its outputs, and a check of its settings.

Another package adds a stage with an `AddedStage` that an entry point of the group `hdm.stages`
names. A pipeline has the stage if `stages.NAME` holds its settings; `{}` selects its defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hdm.errors import InputError
from hdm.stage_list import Stage
from hdm.store import Identity, Output, Outputs, Store

Pipeline = TypeVar("Pipeline", contravariant=True)
"""The part of `hdm.config.Pipeline` that a stage reads."""
Digests = Mapping[str, str]
SMALL_BYTES = 8
"""Bytes per row of a small, compressed table: a key and a number."""
Preflight = Callable[[Pipeline, Outputs], Iterator[InputError]]


@dataclass(frozen=True)
class Numbers:
    """The amounts from which outputs are made, as far as `hdm plan` knows them.

    Args:
        pictures: in the source.
        kept: pictures kept by the filter; all of them before it has run.
        captions: of the kept pictures.
        images: that the evaluation generates.
    """

    pictures: int
    kept: int
    captions: int
    images: int


@dataclass(frozen=True)
class Size:
    """The cost of an output, for `hdm plan`.

    Args:
        items: number of pictures, captions or images processed.
        bytes: of each in the store.
        flops: for each, counting a multiplication and an addition as two; None: unknown.
        tokens: length of the sequences processed.
    """

    items: int
    bytes: float = 0.0
    flops: float | None = 0.0
    tokens: float = 1.0


@dataclass(frozen=True)
class OutputStep(Generic[Pipeline]):
    """One output: its name, the names of its inputs, how to identify and how to make it.

    `size` gives its cost; None: `hdm plan` counts it itself, or reports that it does not.
    """

    name: str
    inputs: tuple[str, ...]
    identify: Callable[[Pipeline, Digests], Identity]
    make: Callable[[Pipeline, Identity, Outputs, Store], Output]
    size: Callable[[Pipeline, Numbers], Size] | None = None

    @property
    def stage(self) -> str:
        return self.name.split(".")[0]


def _no_problems(_: object, __: Outputs) -> Iterator[InputError]:
    return iter(())


@dataclass(frozen=True)
class StageWork(Generic[Pipeline]):
    """The work of a stage.

    Args:
        outputs: the pipeline's steps in this stage, each after its inputs, given the names of the
            outputs before it; none if the pipeline does not need the stage.
        preflight: the settings that cannot work, given the outputs that earlier stages have already
            made.
    """

    outputs: Callable[[Pipeline, Collection[str]], Iterable[OutputStep[Pipeline]]]
    preflight: Preflight[Pipeline] = _no_problems


@dataclass(frozen=True, kw_only=True)
class AddedStage(Stage):
    """A stage from another package; `settings` and `after` are required."""

    work: StageWork[Any]
