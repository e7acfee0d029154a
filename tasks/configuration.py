"""Where runs read their settings and store their outputs."""

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
    """The store and the pipelines of a process's runs, chosen once where the process is started.

    It is never a parameter of a flow: someone who may start a deployment over the network must not
    choose files or folders on this machine.

    Args:
        root: the store.
        file: a person's own pipelines.yaml; None: the one in the working folder, if there is one.
        tracked: whether runs are tracked in MLflow.
    """

    root: Path
    file: Path | None = None
    tracked: bool = True

    @classmethod
    def chosen(cls, store: Path | None = None, file: Path | None = None) -> Project:
        """Choose by the options, or else the environment (HDM_STORE, HDM_PIPELINES,
        HDM_TRACKING=off), or else the working folder.

        Raises:
            InputError: the store cannot be a folder.
        """
        from_environment = os.environ.get(FILE_VARIABLE)
        own = file or (Path(from_environment) if from_environment else None)
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
    """A digest of all settings that change results: 16 hex digits."""
    fields = dict(settings.result_fields())
    # Renaming a pipeline changes no result.
    for name in ("name", "description"):
        fields.pop(name, None)
    return hashlib.sha256(canonical_json(fields)).hexdigest()[:16]
