"""The last run of each pipeline: the outputs that it makes, its progress, and the newest model.

<store>/.pipelines/NAME.json                     written when a run of the pipeline begins
<HDM_STATE>/.pipelines/<store's hash>/NAME.json  the same, where HDM_STATE is set

No digest covers either file.

Light: torch is not imported.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from hdm.errors import InputError
from hdm.files import write_json
from hdm.pipelines import did_you_mean
from hdm.store import LOCK, MANIFEST, is_locked, state_root

FOLDER = ".pipelines"
FINISHED = "finished"
IN_WORK = "in work"
BEGUN = "begun"
MISSING = "to do"


@dataclass(frozen=True)
class LastRun:
    """The last run of a pipeline, as recorded when it began.

    Args:
        started: seconds since 1970.
        outputs: output name → digest, in order; None for those after `--until`, which are not
            identified.
        components: text encoder and autoencoder that are folders on this machine, for the model's
            pictures.
        trained: the training phase that was finished last before this run, as `train.64px/DIGEST`.
    """

    pipeline: str
    started: float
    outputs: Mapping[str, str | None]
    components: Mapping[str, str] = field(default_factory=dict)
    trained: str | None = None


READER = TypeAdapter(LastRun)


def remember(root: Path, run: LastRun) -> None:
    """Record that this run begins."""
    write_json(_records(root) / f"{run.pipeline}.json", asdict(run))


def _records(root: Path) -> Path:
    """The folder for the records of this user's runs."""
    state = state_root(root)
    if state == root.resolve():
        return root / FOLDER
    # One HDM_STATE may serve several stores.
    return state / FOLDER / hashlib.sha256(bytes(root.resolve())).hexdigest()[:16]


def last_runs(root: Path) -> list[LastRun]:
    """The last run of every pipeline that has run in a store, newest first."""
    runs: dict[str, LastRun] = {}
    # The runs of the store's owner, and this user's own.
    for folder in (root / FOLDER, _records(root)):
        for path in folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):  # cut off, or of another version
                run = READER.validate_json(path.read_bytes())
                earlier = runs.get(run.pipeline)
                if earlier is None or run.started > earlier.started:
                    runs[run.pipeline] = run
    return sorted(runs.values(), key=lambda run: run.started, reverse=True)


def progress(root: Path, run: LastRun) -> dict[str, str]:
    """Output name → FINISHED, IN_WORK, BEGUN or MISSING."""
    found = {}
    for name, digest in run.outputs.items():
        found[name] = _progress(root / name / digest) if digest else MISSING
    return found


def _progress(folder: Path) -> str:
    if (folder / MANIFEST).exists():
        return FINISHED
    if not folder.exists():
        return MISSING
    return IN_WORK if is_locked(folder / LOCK) else BEGUN


def trained_last(root: Path, run: LastRun) -> str | None:
    """The last finished training phase of a pipeline's last run, or else of an earlier one, as
    `train.64px/DIGEST`.
    """
    newest = None
    # An earlier run's training may have been removed from the store since.
    if run.trained and (root / run.trained / MANIFEST).exists():
        newest = run.trained
    for name, state in progress(root, run).items():
        if name.startswith("train.") and state == FINISHED:
            newest = f"{name}/{run.outputs[name]}"
    return newest


def newest_model(root: Path, pipeline: str | None = None) -> tuple[Path, Mapping[str, str]]:
    """The folder of the newest finished training, and those of its components that are folders on
    this machine.

    Args:
        pipeline: its name; None: the pipeline that ran last, or any training if no run is recorded.

    Raises:
        InputError: there is none.
    """
    runs = last_runs(root)
    for run in runs:
        if pipeline in (None, run.pipeline) and (trained := trained_last(root, run)):
            return root / trained, run.components
    # Only where no recorded run has trained: the newest training in the store.
    any_training = max(_trainings(root), default=None)
    if pipeline is None and any_training is not None:
        return any_training[1], {}
    hint = did_you_mean(pipeline, [run.pipeline for run in runs]) if pipeline else ""
    run_first = "demo" if pipeline is None or hint else pipeline
    of = f" of the pipeline {pipeline}" if pipeline else ""
    raise InputError(
        f"there is no finished training{of} in this store{hint}",
        where=root,
        do=f"run one, as hdm run {run_first}, or name another store with --store",
    )


def _trainings(root: Path) -> Iterator[tuple[float, Path]]:
    for manifest in root.glob(f"train.*/*/{MANIFEST}"):
        yield manifest.stat().st_mtime, manifest.parent
