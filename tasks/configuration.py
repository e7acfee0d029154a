"""The configuration that a flow's parameters name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hdm.config import Pipeline
from hdm.pipelines import load_pipeline

FILE_VARIABLE = "HDM_PIPELINES"


def configured(pipeline: str, overrides: Iterable[str] = ()) -> Pipeline:
    """The pipeline of that name, from the file that the environment's HDM_PIPELINES names, else the project's."""
    file = os.environ.get(FILE_VARIABLE)
    return load_pipeline(pipeline, overrides, Path(file) if file else None)
