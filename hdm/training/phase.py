"""The stage `train`: one output a phase, each starting from the averaged weights of the one before.

Averaged (EMA) rather than raw: they are the ones that are measured and shown, and the next phase
warms up anew in any case.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from hdm.architecture import XUTConfig
from hdm.errors import ConfigError, InputError, raised_by
from hdm.model_files.file_names import CARD
from hdm.model_files.opening import model_config, model_digest
from hdm.models.adapters import check_package, targets_of
from hdm.models.autoencoder import pipeline_latent_shape
from hdm.models.components import autoencoder_in, autoencoder_weights, resolve, weights_digest
from hdm.models.devices import check_device, check_processes
from hdm.models.settings import AdapterSettings
from hdm.models.text_encoder import check_text_width, text_width
from hdm.store import DAMAGED, SCRATCH, Draft, Identity, Output, Outputs, Store
from hdm.training.process.job import (
    METRICS,
    SUMMARY,
    Job,
    checkpoint_step,
    newest_checkpoint,
)
from hdm.training.process.launch import make_companions, run_training
from hdm.training.process.origin import check_origin
from hdm.training.settings import Pipeline
from hdm.training.state.optimizers import check_packages

SCHEMA = 2

log = logging.getLogger(__name__)


def identify(pipeline: Pipeline, inputs: Mapping[str, str], number: int) -> Identity:
    """What the weights of phase `number` depend on: its own settings, not those of later phases."""
    settings = pipeline.train
    phase = pipeline.train.phases[number]
    # A later phase can be changed without training this one again.
    shared = {name: value for name, value in settings.result_fields().items() if name != "phases"}
    components = resolve(pipeline.components)
    weights = {
        **autoencoder_weights(inputs, pipeline.components),
        # Cached text embeddings do not remove this dependency: the prompts of generated pictures
        # need the encoder.
        "text_encoder": weights_digest(components.need("text_encoder")),
    }
    # The digest covers the weights' hash and not their path, so the file may move.
    if number == 0 and settings.start is not None and settings.start.weights is not None:
        weights["start"] = model_digest(Path(settings.start.weights).expanduser())
    return Identity(
        f"train.{phase.name}",
        SCHEMA,
        {**shared, "phase": phase.result_fields()},
        dict(inputs),
        weights,
    )


def preflight(pipeline: Pipeline, made: Outputs) -> Iterator[InputError]:
    """What of `train` cannot work."""
    settings = pipeline.train
    yield from raised_by(
        partial(check_device, settings.device, "train.device"),
        partial(check_processes, settings.device, settings.num_processes, "train.num_processes"),
        partial(_components_fit, pipeline),
        partial(_start_fits, pipeline),
        partial(_captions_suffice, pipeline, made),
        partial(_pictures_suffice, pipeline, made.get("filter")),
    )
    for number, one in enumerate(settings.phases):
        field = f"train.phases.{number}.optimizer.state_bits"
        yield from raised_by(partial(check_packages, one.optimizer, field))
        if one.adapter is not None:
            yield from raised_by(partial(_adapter_fits, settings.model, one.adapter, number))


def _components_fit(pipeline: Pipeline) -> None:
    shape = pipeline_latent_shape(pipeline)
    model = pipeline.train.model
    if shape is not None:
        shape.check_channels(model)
    reference = resolve(pipeline.components).need("text_encoder")
    width = text_width(reference)
    if width is not None:
        check_text_width(width, reference, model)


def _start_fits(pipeline: Pipeline) -> None:
    """Whether the weights to start from belong to `train.model`, variants of equal shapes
    included.
    """
    start = pipeline.train.start
    if start is None:
        return
    if start.weights is not None:
        field = "train.start.weights"
        theirs = model_config(Path(start.weights).expanduser())
    else:
        assert start.pipeline is not None
        field = "train.start.pipeline"
        other = pipeline.mixed[start.pipeline].train
        theirs = other.model
        named = [phase for phase in other.phases if start.phase in (None, phase.name)]
        if named and named[-1].adapter is not None:
            raise ConfigError(
                f"{named[-1].name} of {start.pipeline} trains an adapter, which is no whole model",
                where=field,
                do="start from the model that the adapter was trained on, or name the adapter's"
                " output in train.start.weights: it is then merged",
            )
    # Variants are compared too, since weights of equal shapes may belong to another model.
    have = theirs.to_dict()
    want = pipeline.train.model.to_dict()
    differing = []
    for name in sorted({*have, *want}):
        theirs_is, ours_is = have.get(name), want.get(name)
        if theirs_is != ours_is:
            differing.append(f"{name} is {theirs_is} there and {ours_is} in train.model")
    if differing:
        raise InputError(
            f"the weights to start from are of another model: {', '.join(differing)}",
            where=f"{field}: {start.weights or start.pipeline}",
            do="set train.model as they need it, or start from other weights",
        )


def _adapter_fits(model: XUTConfig, adapter: AdapterSettings, number: int) -> None:
    """Whether the adapter has layers to go to; needs no weights."""
    field = f"train.phases.{number}.adapter"
    check_package(field)
    targets_of(model, adapter, field)


def _pictures_suffice(pipeline: Pipeline, filter: Output | None) -> None:
    """Of the splits, as far as the shares say, or the filter's output where it is there."""
    # Only the settings are known before the filter has run.
    counts: Mapping[str, int] = filter.counts if filter else {}
    nothing = not pipeline.filter.validation or counts.get("validation") == 0
    if pipeline.train.watches and nothing:
        raise InputError(
            "train.keep: best and train.patience need pictures held out for validation, and there"
            " are none",
            where="filter.validation",
            do="raise it",
        )
    if counts.get("train") == 0:
        raise InputError(
            f"none of the {counts.get('kept', 0)} kept pictures is left for training",
            where="filter.validation, filter.held_out",
            do="lower filter.validation and filter.held_out, or name a source with more",
        )


def _captions_suffice(pipeline: Pipeline, made: Outputs) -> None:
    """As the captions say where they are made, or else the download, if nobody makes any up."""
    caption = made.get("caption")
    download = made.get("download")
    makes_up = any(maker.kind != "given" for maker in pipeline.caption.makers)
    if caption is not None:
        none = caption.counts.get("captions") == 0
    else:
        given: Mapping[str, int] = download.counts if download and not makes_up else {}
        items = given.get("items", 0)
        # A download whose counts do not mention captions is not taken for one without any.
        none = items > 0 and given.get("items_uncaptioned") == items
    if none:
        raise InputError(
            "training needs captions, and none of the pictures has one",
            where="caption.makers",
            do=(
                "see docs/own-pictures.md for where captions are looked for, or add a maker that"
                " makes them up to caption.makers"
            ),
        )


def check_resume(pipeline: Pipeline, identity: Identity, store: Store, number: int) -> None:
    """Whether phase `number` may go on from where its `resume_from` says; errors as
    `check_origin`.
    """
    # `check_origin` reads identity and settings only.
    folder = store.folder(identity)
    check_origin(
        Job(
            pipeline=pipeline.model_dump(mode="json"),
            number=number,
            identity=asdict(identity),
            digest=identity.digest,
            inputs={},
            folder=str(folder),
            scratch=str(folder / SCRATCH),
            text_encoder="",
            autoencoder="",
        )
    )


def make(
    pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store, number: int
) -> Output:
    """Train phase `number` in processes of its own and commit what it wrote.

    Where the weights of a phase that was finished once still hold, nothing is trained: what is
    damaged beside them is made again from them, and files that only training could make again are
    left out (`lost` in the summary).

    Raises:
        SavedOnSignal: stopped by SIGTERM or Ctrl-C; run again to go on.
        HdmError: what the training processes met.
    """
    with store.draft(identity) as draft:
        job = _job(pipeline, identity, inputs, draft, number)
        if _is_trained(job, draft):
            return _mend(job, draft)
        # Training writes the summary last: if it and all files exist, only the commit is missing.
        if not (job.result / SUMMARY).exists() or not all(map(draft.has, _files(job))):
            _tell_of_lost_weights(job, draft)
            run_training(job)
            _collect(job, draft, _files(job))
        return draft.commit(_summary(job))


def _is_trained(job: Job, draft: Draft) -> bool:
    """Whether it was finished once, and its weights still hold: checkpoints go when a phase is
    committed.
    """
    whole = all(map(draft.has, job.weights_files))
    return whole and newest_checkpoint(Path(job.scratch)) is None


def _mend(job: Job, draft: Draft) -> Output:
    """Make what was damaged beside the weights again, and commit."""
    # Snapshots and pictures from during the training cannot be made from the last weights.
    lost = sorted(draft.lost - set(job.files))
    log.warning(
        "%s: the weights hold and nothing is trained again; made again from them: %s",
        draft.identity.name,
        ", ".join(sorted(draft.lost - set(lost))) or "the manifest",
    )
    if lost:
        log.warning(
            "%s: only training could make %s again: left out of the output",
            draft.identity.name,
            ", ".join(lost),
        )
    # Releases that kept no copy of it left outputs where it can be missing.
    if not draft.has(METRICS):
        _salvage_metrics(draft.path)
    # One process does it, without shards.
    alone = job.settings.train.model_copy(update={"num_processes": 1})
    # The number of processes is part of no digest, so the output stays the same.
    mending = replace(
        job,
        pipeline={**job.pipeline, "train": alone.model_dump(mode="json")},
        milestones=sorted(draft.records.keys() - set(job.files)),
    )
    make_companions(mending)
    _collect(mending, draft, [name for name in _files(mending) if not draft.has(name)])
    return draft.commit({**_summary(mending), **({"lost": lost} if lost else {})})


def _salvage_metrics(folder: Path) -> None:
    """Keep the whole lines of a damaged metrics.jsonl of a release that kept no copy of it."""
    path = folder / METRICS
    damaged = path if path.is_file() else path.with_name(METRICS + DAMAGED)
    lines = damaged.read_bytes().splitlines() if damaged.is_file() else []
    whole = []
    # Half a line, at the end or beside the damage, is dropped.
    for line in lines:
        with contextlib.suppress(ValueError):
            json.loads(line)
            whole.append(line)
    log.warning("%s: %d of %d lines could be read and are kept", path, len(whole), len(lines))
    path.write_bytes(b"".join(line + b"\n" for line in whole))


def _tell_of_lost_weights(job: Job, draft: Draft) -> None:
    """Say before it begins why a phase that was finished is trained again."""
    lost = sorted(set(job.weights_files) & draft.lost)
    if not lost:
        return
    newest = newest_checkpoint(Path(job.scratch))
    if newest is not None:
        how = f"trained on from its last checkpoint, step {checkpoint_step(newest)}"
    else:
        how = "trained again from its start: the checkpoints of a finished phase are not kept"
        draft.start_over()
    log.warning("%s: %s damaged; the phase is %s", draft.identity.name, " and ".join(lost), how)


def _job(pipeline: Pipeline, identity: Identity, inputs: Outputs, draft: Draft, number: int) -> Job:
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


def _collect(job: Job, draft: Draft, names: list[str]) -> None:
    """Move the files that training made to their places."""
    for name in names:
        # Files that are small, and that only the whole training would make again, get a copy.
        with draft.write(name, copied=name in (METRICS, CARD)) as file:
            _move(job.result / name, file.path)
            if name == METRICS:
                file.counts.update(_counts(job))


def _files(job: Job) -> list[str]:
    """What the output holds, of a phase that is done."""
    return [*job.files, *_summary(job).get("milestones", [])]


def _summary(job: Job) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((job.result / SUMMARY).read_bytes())
    return summary


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
