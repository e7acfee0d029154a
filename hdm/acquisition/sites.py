"""Where a download reads from, and which made-up host names lead to this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hdm.acquisition.settings import SourceKind


@dataclass(frozen=True)
class Site:
    """A source that is ready to be read.

    Args:
        source: a URL list, a folder, WebDataset tars (a glob) or a data set's name, as in
            `download.source`.
        kind: how to read it; "auto" decides by what it is.
        hosts: host name → (loopback address, port) for pictures served by this machine, so that
            URLs hold no port; {} on the real web, and honoured only where `download.allow_loopback`
            is set.
    """

    source: str
    kind: SourceKind
    hosts: Mapping[str, tuple[str, int]]
