"""The stage `train`: one output a phase, each starting from the averaged weights of the one before.

Averaged (EMA) rather than raw: they are the ones that are measured and shown, and the next phase warms up anew in any case.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hdm.config import Pipeline
from hdm.errors import InputError, raised_by
from hdm.models.components import autoencoder_in, autoencoder_weights, resolve, weights_digest
from hdm.models.devices import check_device
from hdm.store import Draft, Identity, Output, Store
from hdm.training.job import FILES, METRICS, SUMMARY, Job
from hdm.training.launch import run_training

SCHEMA = 2


def identify(pipeline: Pipeline, inputs: Mapping[str, str], number: int) -> Identity:
    """What the weights of phase `number` depend on: its own settings, not those of later phases."""
    settings, phase = pipeline.train, pipeline.train.phases[number]
    shared = {name: value for name, value in settings.result_fields().items() if name != "phases"}
    components = resolve(pipeline.components)
    weights = {
        **autoencoder_weights(inputs, pipeline.components),
        "text_encoder": weights_digest(components.need("text_encoder")),
    }
    return Identity(
        f"train.{phase.name}",
        SCHEMA,
        {**shared, "phase": phase.result_fields()},
        dict(inputs),
        weights,
    )


def preflight(pipeline: Pipeline, made: Mapping[str, Output]) -> Iterator[InputError]:
    """What of `train` cannot work."""
    yield from raised_by(lambda: check_device(pipeline.train.device, "train.device"))


def make(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store, number: int
) -> Output:
    """Train phase `number` in processes of its own and commit what it wrote.

    Raises:
        SavedOnSignal: stopped by SIGTERM or Ctrl-C; run again to go on.
        HdmError: what the training processes met.
    """
    with store.draft(identity) as draft:
        job = _job(pipeline, identity, inputs, draft, number)
        if not (job.result / SUMMARY).exists() or not all(map(draft.has, _files(job))):
            run_training(job)
            _collect(job, draft)
        return draft.commit(_summary(job))


def _job(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], draft: Draft, number: int
) -> Job:
    components = resolve(pipeline.components)
    return Job(
        pipeline=pipeline.model_dump(mode="json"),
        number=number,
        identity=asdict(identity),
        digest=identity.digest,
        inputs={name: str(output.path.resolve()) for name, output in inputs.items()},
        folder=str(draft.path.resolve()),
        scratch=str(draft.scratch.resolve()),
        text_encoder=components.need("text_encoder"),
        autoencoder=autoencoder_in(inputs, pipeline.components),
    )


def _collect(job: Job, draft: Draft) -> None:
    """Move the files that training made to their places."""
    for name in _files(job):
        with draft.write(name) as file:
            _move(job.result / name, file.path)
            if name == METRICS:
                file.counts.update(_counts(job))


def _files(job: Job) -> list[str]:
    """What the output holds, of a phase that is done."""
    return [*FILES, *_summary(job).get("milestones", [])]


def _summary(job: Job) -> dict[str, Any]:
    return json.loads((job.result / SUMMARY).read_bytes())


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError:  # scratch on another file system
        shutil.copyfile(source, target)


def _counts(job: Job) -> dict[str, Any]:
    summary = _summary(job)
    return {
        "steps": summary["step"],
        "images_seen": summary["num_images_seen"],
        "skipped_steps": summary["skipped_steps"],
    }
