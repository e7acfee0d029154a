"""The source of a download, the host names that lead to this machine, and the data sets that are
made and served here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from hdm.acquisition.settings import Pipeline, SourceKind


@dataclass(frozen=True)
class Site:
    """A source that is ready to be read.

    Args:
        source: a URL list, a folder, WebDataset tars (a glob) or a data set's name, as in
            `download.source`.
        kind: how to read it; "auto": detect it.
        hosts: host name → (loopback address, port) of pictures served by this machine, so that URLs
            contain no port. {} on the real web; used only if `download.allow_loopback` is set.
    """

    source: str
    kind: SourceKind
    hosts: Mapping[str, tuple[str, int]]


@dataclass(frozen=True)
class ServedSet:
    """A data set that is made on this machine instead of read from a source.

    Args:
        open: serves it until the end of the block.
        count: how many items it has.
        picture_bytes: of one picture's file, about.
    """

    open: Callable[[Pipeline], AbstractContextManager[Site]]
    count: Callable[[Pipeline], int]
    picture_bytes: Callable[[Pipeline], float]


SERVED: dict[SourceKind, ServedSet] = {}


def register(kind: SourceKind, served: ServedSet) -> None:
    """Let `download.kind` name a data set.

    Raises:
        ValueError: the kind is taken.
    """
    if kind in SERVED:
        raise ValueError(f"a data set of kind {kind!r} is registered already")
    SERVED[kind] = served


def served_set(pipeline: Pipeline) -> ServedSet | None:
    """The data set that a pipeline has made and served; None where it reads a source."""
    return SERVED.get(pipeline.download.kind)
