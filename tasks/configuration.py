"""The configuration that a flow's parameters name."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from hdm.config import Pipeline
from hdm.files import canonical_json
from hdm.pipelines import load_pipeline
from tasks import secret_blocks

FILE_VARIABLE = "HDM_PIPELINES"


def configured(pipeline: str, overrides: Iterable[str] = ()) -> Pipeline:
    """The pipeline of that name, from the file that the environment's HDM_PIPELINES names, else the
    project's.

    Read once a run: whoever edits the file meanwhile changes the next one.
    """
    secret_blocks.provide()
    return _read(pipeline, tuple(overrides), os.environ.get(FILE_VARIABLE))


def read_anew() -> None:
    """A run begins: what was read for the one before is forgotten."""
    _read.cache_clear()
    secret_blocks.forget()


def recipe(settings: Pipeline) -> str:
    """A digest of every setting that changes results: 16 hex digits."""
    fields = {
        name: value
        for name, value in settings.result_fields().items()
        if name not in ("name", "description")
    }
    return hashlib.sha256(canonical_json(fields)).hexdigest()[:16]


@functools.lru_cache
def _read(pipeline: str, overrides: tuple[str, ...], file: str | None) -> Pipeline:
    return load_pipeline(pipeline, overrides, Path(file) if file else None)
