"""Where runs read their settings and keep their outputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hdm.config import Pipeline
from hdm.files import canonical_json
from hdm.pipelines import load_pipeline
from hdm.store import Store, store_root

STORE_VARIABLE = "HDM_STORE"
FILE_VARIABLE = "HDM_PIPELINES"
TRACKING_VARIABLE = "HDM_TRACKING"


@dataclass(frozen=True)
class Project:
    """The store and the pipelines of a process's runs, chosen once by whoever starts the process.

    No parameter of a flow: whoever may start a deployment chooses neither files nor folders here.

    Args:
        root: the store.
        file: a person's own pipelines.yaml; None: the one of the working folder, if there is one.
        tracked: whether MLflow hears of runs.
    """

    root: Path
    file: Path | None = None
    tracked: bool = True

    @classmethod
    def chosen(cls, store: Path | None = None, file: Path | None = None) -> Project:
        """By options, else by the environment (HDM_STORE, HDM_PIPELINES, HDM_TRACKING=off), else
        by the working folder.

        Raises:
            InputError: the store cannot be a folder.
        """
        named = os.environ.get(FILE_VARIABLE)
        own = file or (Path(named) if named else None)
        tracked = os.environ.get(TRACKING_VARIABLE) != "off"
        return cls(store_root(store), own.resolve() if own else None, tracked)

    @property
    def store(self) -> Store:
        return Store(self.root)

    def pipeline(self, name: str, overrides: Iterable[str] = ()) -> Pipeline:
        """The pipeline of that name, as the file has it now.

        Raises:
            ConfigError: as `load_pipeline`.
        """
        return load_pipeline(name, overrides, self.file)


def recipe(settings: Pipeline) -> str:
    """A digest of every setting that changes results: 16 hex digits."""
    fields = {
        name: value
        for name, value in settings.result_fields().items()
        if name not in ("name", "description")
    }
    return hashlib.sha256(canonical_json(fields)).hexdigest()[:16]
