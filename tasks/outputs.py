"""How every task makes an output, and the list of outputs of a flow."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
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
    """Stages with the names of their outputs, in order; every training phase by itself."""
    from hdm.stages import chosen  # torch and the stages: seconds

    stages: list[tuple[str, list[str]]] = []
    for step in chosen(settings, start_from, stop_after):
        # A training phase has a flow run of its own, in which it can be stopped and retried.
        is_new = not stages or stages[-1][0] != step.stage
        if is_new or step.stage == "train":
            stages.append((step.stage, []))
        _, outputs = stages[-1]
        outputs.append(step.name)
    return stages


def preflight(run: Run, start_from: str | None = None, stop_after: str | None = None) -> None:
    """Raise one error that lists all problems of the settings of these stages, if there are any."""
    from hdm.stages import preflight  # torch and the stages: seconds

    preflight(run.settings, run.store, start_from, stop_after)


def remember(run: Run, stop_after: str | None = None) -> None:
    """Record what this run of a pipeline will make, for `hdm status` and `hdm sample`."""
    from hdm.models.components import DENOISING, portable_names, resolve
    from hdm.stages import OutputGraph, chosen  # torch and the stages: seconds

    settings = run.settings
    root = run.project.root
    graph = OutputGraph(settings)
    digests: dict[str, str | None] = {step.name: None for step in graph.steps}
    # From the last one back: identifying an output also identifies those that it depends on.
    for step in reversed(chosen(settings, None, stop_after)):
        if digests[step.name] is None:
            for name, identity in graph.identities(step.name).items():
                if name in digests:
                    digests[name] = identity.digest
    # Components by portable names are found anywhere; folders have to be remembered.
    portable = portable_names(settings.components)
    components = resolve(settings.components)
    folders = {}
    for name in DENOISING:
        folder = getattr(components, name)
        is_made_here = name == "autoencoder" and settings.vae is not None
        if name not in portable and not is_made_here and folder and Path(folder).exists():
            folders[name] = str(Path(folder).resolve())
    # Until this run has trained, `hdm sample` uses the weights of the one before.
    before = None
    for earlier in last_runs.last_runs(root):
        if earlier.pipeline == settings.name:
            before = last_runs.trained_last(root, earlier)
    last_runs.remember(root, LastRun(settings.name, time.time(), digests, folders, before))


def checked(run: Run, stage: str, outputs: Iterable[str] = ()) -> list[str]:
    """Check a stage's settings and return the outputs that its flow has to make; all of the stage's
    if none is named.

    Raises:
        InputError: the stage cannot work.
    """
    preflight(run, stage, stage)
    of_stage: list[str] = []
    for name, names in planned(run.settings, stage, stage):
        if name == stage:
            of_stage += names
    return list(outputs) or of_stage


def make(run: Run, name: str) -> StageRecord:
    """Make one output unless it is in the store, and report it to the tracker and the log."""
    record = made_or_found(run, name)
    logger.info("%s", described(record))
    return record


def made_or_found(run: Run, name: str) -> StageRecord:
    """Make one output unless it is in the store, and report it to the tracker."""
    from hdm.stages import OutputGraph, run_step

    # Known beforehand, so that the tracker can follow the files that grow there.
    folder = run.store.folder(OutputGraph(run.settings).identity(name))
    begun = time.monotonic()
    with stoppable(), run.reporter.stage(name, folder):
        result = run_step(run.settings, run.store, name)
    output = result.output
    record = StageRecord(
        name,
        output.digest,
        str(output.path),
        dict(output.counts),
        round(time.monotonic() - begun, 3),
        result.cached,
    )
    run.reporter.made(record)
    return record


def described(record: StageRecord) -> str:
    """One line about an output, for a terminal and for Prefect's log."""
    counts = ", ".join(f"{name} {count:,}" for name, count in record.counts.items() if count)
    took = "up to date" if record.cached else f"{record.seconds:.1f} s"
    return f"{record.name:<16} {took:>10}  {counts}".rstrip()
