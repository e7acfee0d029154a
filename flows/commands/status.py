"""`hdm status`: what is running, each pipeline's progress, and what the store holds. It contacts no
server and does not import torch, so it answers quickly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from rich.markup import escape

from hdm.last_runs import BEGUN, FINISHED, IN_WORK, MISSING, LastRun, last_runs, progress
from hdm.messages import Terminal
from hdm.store import MANIFEST, Output, Store
from hdm.training.process.job import Job
from hdm.training.process.running import progress as training_progress
from hdm.training.process.running import trainings
from tasks.services import runs, serving, visible

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def show_status(root: Path) -> None:
    """Print it."""
    out = Terminal(highlight=False, soft_wrap=True)
    for line in _lines(root):
        out.print(escape(line))


def place(job: Job) -> str:
    """A training's progress in one line."""
    now = training_progress(job)
    what = f"{job.settings.name} train.{job.phase.name}"
    if now is None:
        return f"{what}  starting"
    loss = "not finite" if now.loss is None else f"{now.loss:.4f}"
    share = now.num_images_seen / now.num_images
    return (
        f"{what}  {now.num_images_seen:,} of {now.num_images:,} images ({share:.0%}),"
        f" {now.images_per_sec:.1f} images/s, loss {loss}, done in about"
        f" {now.seconds_left / 60:.0f} min"
    )


def _lines(root: Path) -> Iterator[str]:
    alive = serving(root)
    now = time.time()
    yield f"store     {root}"
    if alive:
        yield f"serving   Prefect {alive.prefect}  MLflow {alive.mlflow}  (pid {alive.pid})"
    else:
        yield "serving   no; `hdm serve` starts the pages"
    # Another user's services cannot be asked, which is not the same as having no runs.
    if not visible(root):
        yield "running   unknown: the services of this store are another user's"
    for found in runs(root):
        yield (
            f"running   {found['pipeline']} for {_span(now - found['started'])}  (pid"
            f" {found['pid']})"
        )
    for job in trainings(root):
        yield f"training  {place(job)}"
    for run in last_runs(root):
        began = _span(now - run.started)
        yield f"pipeline  {run.pipeline}  last run {began} ago; {_how_far(root, run)}"
    outputs = list(Store(root).outputs())
    total = sum(_size(output) for output in outputs)
    yield f"outputs   {len(outputs)}, {_bytes(total)}"
    for output in outputs:
        yield _line(output, now)


def _how_far(root: Path, run: LastRun) -> str:
    states = progress(root, run)
    parts = []
    for state in (FINISHED, IN_WORK, BEGUN, MISSING):
        if names := _by_stage(states, state):
            parts.append(f"{state}: {', '.join(names)}")
    return "; ".join(parts)


def _by_stage(states: Mapping[str, str], state: str) -> list[str]:
    """The outputs in that state; a stage's name stands for all of its outputs."""
    found: list[str] = []
    for stage, names in groupby(states, key=lambda name: name.split(".")[0]):
        # `groupby` relies on the order of the outputs: those of a stage stand together.
        all_names = list(names)
        of_it = [name for name in all_names if states[name] == state]
        found += [stage] if of_it == all_names else of_it
    return found


def _line(output: Output, now: float) -> str:
    counts = ", ".join(f"{key} {count:,}" for key, count in output.counts.items())
    # The manifest is written last: its time is that of the commit.
    age = _span(now - (output.path / MANIFEST).stat().st_mtime)
    took = output.run().get("seconds", 0)
    return (
        f"  {output.name:<16} {output.digest}  {_bytes(_size(output)):>9}  {age:>7} ago  "
        f"took {took:,.1f} s  {counts}"
    )


def _size(output: Output) -> int:
    return sum(record.bytes for record in output.files)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _span(seconds: float) -> str:
    """A duration such as `40 s`, `12 min`, `5 h`, `3 d`."""
    for length, unit in UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
