"""The one way in which every task makes an output, and the list of outputs that a flow asks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from hdm import last_runs
from hdm.config import Pipeline
from hdm.last_runs import LastRun
from tasks.records import StageRecord
from tasks.run import Run
from tasks.stopping import stoppable

logger = logging.getLogger("hdm.run")


def planned(
    settings: Pipeline, start_from: str | None = None, stop_after: str | None = None
) -> list[tuple[str, list[str]]]:
    """Stage → names of its outputs, in order; every training phase for itself."""
    from hdm.stages import chosen  # torch and the stages: seconds

    names = [step.name for step in chosen(settings, start_from, stop_after)]
    parts = groupby(
        names, key=lambda name: name if name.startswith("train.") else name.split(".")[0]
    )
    return [(key.split(".")[0], list(part)) for key, part in parts]


def preflight(run: Run, start_from: str | None = None, stop_after: str | None = None) -> None:
    """Raise one error that lists everything in the settings that would make these stages fail, if
    there is anything.
    """
    from hdm.stages import preflight  # torch and the stages: seconds

    preflight(run.settings, run.store, start_from, stop_after)


def remember(run: Run, stop_after: str | None = None) -> None:
    """Write down what this run of a pipeline will make, for `hdm status` and `hdm sample`."""
    from hdm.models.components import DENOISING, portable_names, resolve
    from hdm.stages import chosen, identities, steps  # torch and the stages: seconds

    settings = run.settings
    root = run.project.root
    digests: dict[str, str | None] = {step.name: None for step in steps(settings)}
    for step in reversed(chosen(settings, None, stop_after)):
        if digests[step.name] is None:
            known = identities(settings, step.name)
            digests |= {name: one.digest for name, one in known.items() if name in digests}
    parts = {name: getattr(resolve(settings.components), name) for name in DENOISING}
    own = set(parts) - set(portable_names(settings.components))
    folders = {
        name: str(Path(parts[name]).resolve())
        for name in own - ({"autoencoder"} if settings.vae else set())
        if parts[name] and Path(parts[name]).exists()
    }
    before = {run.pipeline: last_runs.trained_last(root, run) for run in last_runs.last_runs(root)}
    last_runs.remember(
        root, LastRun(settings.name, time.time(), digests, folders, before.get(settings.name))
    )


def checked(run: Run, stage: str, outputs: Iterable[str] = ()) -> list[str]:
    """The outputs that a stage's flow is to make, all of the stage's if none is named, once its
    settings are checked.

    Raises:
        InputError: the stage cannot work.
    """
    preflight(run, stage, stage)
    found: list[str] = []
    for name, parts in planned(run.settings, stage, stage):
        found += parts if name == stage else []
    return list(outputs) or found


def make(run: Run, name: str) -> StageRecord:
    """Make one output, unless it is in the store, and tell who follows the run and the log."""
    record = made_or_found(run, name)
    logger.info("%s", described(record))
    return record


def made_or_found(run: Run, name: str) -> StageRecord:
    """Make one output, unless it is in the store, and tell who follows the run."""
    from hdm.stages import identities, run_step

    folder = run.store.folder(identities(run.settings, name)[name])
    begun = time.monotonic()
    with stoppable(), run.reporter.stage(name, folder):
        made = run_step(run.settings, run.store, name)
    output = made.output
    record = StageRecord(
        name,
        output.digest,
        str(output.path),
        dict(output.counts),
        round(time.monotonic() - begun, 3),
        made.cached,
    )
    run.reporter.made(record)
    return record


def described(record: StageRecord) -> str:
    """One line about an output, for a terminal and for Prefect's log."""
    counts = ", ".join(f"{name} {count:,}" for name, count in record.counts.items() if count)
    took = "up to date" if record.cached else f"{record.seconds:.1f} s"
    return f"{record.name:<16} {took:>10}  {counts}".rstrip()
