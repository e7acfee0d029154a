"""Going on from a training of the same phase that was begun with other settings. Light: torch is
not imported.

A changed setting makes another output, which starts anew. `resume_from: DIGEST@STEP` has it start
from a checkpoint of the unfinished one instead, if every setting that differs is allowed by name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from hdm.errors import ConfigError, HdmError, InputError
from hdm.files import read_record
from hdm.store import SCRATCH
from hdm.training.process.job import ERROR, Job, checkpoint_folder, newest_checkpoint, read_outcome

STATE = "state.json"
# What weights and optimizer state are made for.
FIXED = (
    "train.model.",
    ".optimizer.kind",
    ".optimizer.state_bits",
    ".adapter.method",
    ".adapter.rank",
    ".adapter.alpha",
    ".adapter.rslora",
    ".adapter.targets",
)
# What an adapter is made for: its base, as the phase before, another pipeline's, or weights.
BASE = ("inputs.train.", "inputs.start/", "components.start")
Differences = dict[str, tuple[Any, Any]]


def origin_folder(job: Job) -> Path | None:
    """The checkpoint that `resume_from` names; None where it is not set."""
    named = job.phase.resume_from
    if named is None:
        return None
    digest, _, step = named.partition("@")
    return checkpoint_folder(Path(job.folder).parent / digest / SCRATCH, int(step))


def check_origin(job: Job) -> None:
    """Whether this training may go on from where `resume_from` says.

    Raises:
        InputError: there is no such checkpoint.
        ConfigError: settings differ that `resume_allow` does not name, or the images seen do not go
            with this phase.
    """
    path = origin_folder(job)
    if path is None:
        return
    field = f"train.phases.{job.number}"
    state = _state(path)
    if state is None:
        # Checkpoints lie at DIGEST/.scratch/checkpoint-STEP.
        there = [f"{other.parents[1].name}@{int(other.name[-8:])}" for other in _unfinished(job)]
        raise InputError(
            f"there is no checkpoint {job.phase.resume_from}; unfinished trainings of this phase:"
            f" {', '.join(there) or 'none'}",
            where=f"{field}.resume_from",
            do="name one of these, or leave it out to start anew",
        )
    differing = differences(state["identity"], job)
    parts = FIXED if job.phase.adapter is None else (*FIXED, *BASE)
    fixed = {
        name: values for name, values in differing.items() if any(part in name for part in parts)
    }
    if fixed:
        raise ConfigError(
            f"the weights and the optimizer's state of {job.phase.resume_from} do not fit other"
            f" settings of {_worded(fixed)}",
            where=f"{field}.resume_from",
            do="undo these changes, or start anew without resume_from",
        )
    refused = {
        name: values for name, values in differing.items() if name not in job.phase.resume_allow
    }
    if refused:
        allow = json.dumps(sorted({*job.phase.resume_allow, *refused}))
        raise ConfigError(
            f"the checkpoint {job.phase.resume_from} was made with other settings:"
            f" {_worded(refused)}",
            where=f"{field}.resume_from",
            do=f"undo the changes, or allow each by name: --set '{field}.resume_allow={allow}'",
        )
    seen = state["position"]["num_images_seen"]
    # The clock advances by whole batches and must not be past the end of the phase.
    if seen % job.phase.batch_size or seen >= job.phase.num_images:
        raise ConfigError(
            f"the checkpoint {job.phase.resume_from} has seen {seen} images, from where batches of"
            f" {job.phase.batch_size} do not lead to {job.phase.num_images}",
            where=f"{field}.batch_size, {field}.num_images",
            do="choose a batch that divides the images seen, and more images than these",
        )


def differences(before: Mapping[str, Any], job: Job) -> Differences:
    """The values that differ between two identities of one phase, old and new, by the names that
    `--set` accepts; data sets by their digests.
    """
    old = dict(_named(before, job.number))
    now = dict(_named(job.identity, job.number))
    found = {}
    for name in sorted({*old, *now}):
        if old.get(name) != now.get(name):
            found[name] = (old.get(name), now.get(name))
    return found


def notice(job: Job) -> str | None:
    """The message for a phase that starts from the beginning beside an unfinished training of the
    same phase, pipeline and data; of several, the newest. None if there is none.

    Failed trainings are left out: their own error says how to continue, if that is worthwhile.
    """
    # The phase continues from a checkpoint, so it does not start from the beginning.
    if job.phase.resume_from is not None or newest_checkpoint(Path(job.scratch)) is not None:
        return None
    for path in sorted(_unfinished(job), key=lambda path: path.stat().st_mtime, reverse=True):
        state = _state(path)
        if state is None or not _is_alike(path.parent, state["identity"], job):
            continue
        name = f"{path.parents[1].name}@{state['position']['step']}"
        differing = differences(state["identity"], job)
        field = f"train.phases.{job.number}"
        allow = json.dumps(sorted(differing))
        return (
            "starting anew, beside an unfinished training of this phase with other settings "
            f"({_worded(differing)}); to go on from that one: "
            f"--set {field}.resume_from={name} --set '{field}.resume_allow={allow}'"
        )
    return None


def _is_alike(scratch: Path, identity: Mapping[str, Any], job: Job) -> bool:
    """Whether it is an unfinished training of the same pipeline and data that did not fail."""
    if read_outcome(scratch).get("state") == ERROR:
        return False
    with contextlib.suppress(OSError, ValueError, TypeError, HdmError):
        other = Job.read(scratch / job.path.name)
        same_pipeline = other.pipeline.get("name") == job.pipeline.get("name")
        return same_pipeline and _data(identity) == _data(job.identity)
    return False


def _data(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The digests of the inputs with pictures and captions: all but the previous phase."""
    inputs = identity["inputs"]
    # Another previous phase counts as a changed setting, not as other data.
    return {name: inputs[name] for name in inputs if not name.startswith("train.")}


def _unfinished(job: Job) -> list[Path]:
    """The newest checkpoint of each other unfinished training of this phase."""
    own = Path(job.folder)
    found = []
    for folder in own.parent.glob("*"):
        newest = newest_checkpoint(folder / SCRATCH) if folder != own else None
        if newest is not None:
            found.append(newest)
    return found


class _Identity(TypedDict):
    config: dict[str, Any]
    inputs: dict[str, str]
    weights: dict[str, Any]


class _Place(TypedDict):
    step: int
    num_images_seen: int


class _State(TypedDict):
    """What is needed here of what a checkpoint says."""

    identity: _Identity
    position: _Place


def _state(path: Path) -> _State | None:
    """A checkpoint's record; None if training cannot resume from it."""
    with contextlib.suppress(HdmError):
        return read_record(path / STATE, _State, "")
    return None


def _named(identity: Mapping[str, Any], number: int) -> Iterator[tuple[str, Any]]:
    config = dict(identity["config"])
    phase = dict(config.pop("phase", {}))
    # It always differs between a checkpoint and the phase that resumes from it.
    phase.pop("resume_from", None)
    # These are the names that `--set` takes, so that they can be copied from an error.
    yield from _flat("train", config)
    yield from _flat(f"train.phases.{number}", phase)
    yield from _flat("inputs", identity["inputs"])
    yield from _flat("components", identity["weights"])


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, item in value.items():
        yield from _flat(f"{name}.{key}", item)


def _worded(differing: Differences) -> str:
    changes = []
    for name, (old, now) in differing.items():
        changes.append(f"{name} {json.dumps(old)} → {json.dumps(now)}")
    return ", ".join(changes)
