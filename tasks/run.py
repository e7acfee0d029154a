"""A run in progress: its settings, and the reporter of what it makes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from prefect.runtime import flow_run

from hdm.config import Pipeline
from hdm.provenance import provenance
from hdm.store import Store
from tasks.configuration import Project, recipe
from tasks.figures import flattened
from tasks.outcome import Outcome
from tasks.reporter import PipedReporter, Reporter, ending
from tasks.secret_blocks import provided
from tasks.services import under_way
from tasks.stopping import stoppable


@dataclass(frozen=True)
class Run:
    """A run in progress.

    Args:
        project: the store and the pipelines.
        settings: of its pipeline. They are read once, so editing the file changes only later runs.
        overrides: `stage.field=value`, as given.
        reporter: receives an event for everything that is made.
        outcome: of the whole run.
    """

    project: Project
    settings: Pipeline
    overrides: tuple[str, ...]
    reporter: Reporter
    outcome: Outcome

    @property
    def store(self) -> Store:
        return self.project.store

    def of(self, settings: Pipeline) -> Run:
        """A part of this run with its own settings."""
        return replace(self, settings=settings)


Begin = Callable[[str, list[str]], AbstractContextManager[Run]]
"""Begins the run of a pipeline with overrides, or joins the run in progress."""


@contextlib.contextmanager
def running(
    project: Project,
    pipeline: str,
    overrides: list[str],
    *,
    outcome: Outcome | None = None,
    lab: str | None = None,
) -> Iterator[Run]:
    """Announce a run, track what happens in the block, and stop it on a signal.

    Args:
        pipeline, overrides: what is run.
        outcome: filled in.
        lab: name that groups the cells of a lab. Running the same lab again continues its run.

    Raises:
        ConfigError: there is no such pipeline, or its settings are wrong.
    """
    outcome = outcome or Outcome()
    # Before the settings are read: they may name Secret blocks.
    with provided():
        settings = project.pipeline(pipeline, overrides)
        facts = _facts(settings, overrides)
        if lab is not None:
            facts |= {"pipeline": lab, "flow_run": f"{lab} {facts['recipe']}"}
        with under_way(project.root, settings.name, flow_run.root_flow_run_id):
            reporter = PipedReporter(project.root) if project.tracked else Reporter()
            reporter.send("run", **facts)
            try:
                # Not only within stages: before the first one, an import may swallow the exception
                # of a signal.
                with ending(reporter.end), stoppable():
                    yield Run(project, settings, tuple(overrides), reporter, outcome)
            finally:
                outcome.mlflow_run = reporter.run_id


def _facts(settings: Pipeline, overrides: list[str]) -> dict[str, Any]:
    params = settings.model_dump(mode="json", exclude={"name", "description", "mixed"})
    return {
        "pipeline": settings.name,
        "description": settings.description,
        "recipe": recipe(settings),
        "params": dict(flattened(params)),
        "overrides": overrides,
        "pid": os.getpid(),
        "flow_run": flow_run.root_flow_run_id,
        "provenance": provenance(),
    }
