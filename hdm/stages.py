"""The pipeline as a list of outputs to make: what each needs, its identity, and the one call that
makes it.

A stage makes one output or several (`encode.64px`, `encode.128px`): adding one redoes none of the
others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hdm.acquisition import download
from hdm.captioning import caption
from hdm.child import forget_launchers
from hdm.config import Pipeline
from hdm.curation import decide
from hdm.curation.outputs import filter_outputs
from hdm.demo import scoring as demo_scoring
from hdm.demo.site import serve_scenes
from hdm.encoding import downscaled, features, latents, text, tokens
from hdm.encoding import preflight as encoding_preflight
from hdm.errors import ConfigError, DamagedError, InputError, combined, raised_by
from hdm.evaluation import accuracy, copies, images, likeness
from hdm.evaluation import preflight as evaluation_preflight
from hdm.models.components import VAE
from hdm.models.devices import cpu_threads
from hdm.scoring import metrics
from hdm.stage_list import STAGE_NAMES
from hdm.store import MANIFEST, Identity, Output, Outputs, Store, in_use, read_output, set_aside
from hdm.training import phase
from hdm.training.process.job import START, mixed_name
from hdm.vae import stage as vae_stage

TRAININGS = ("train", VAE)
Digests = Mapping[str, str]
Preflight = Callable[[Pipeline, Outputs], Iterator[InputError]]
PREFLIGHTS: Mapping[str, Preflight] = {
    "download": download.preflight,
    "filter": decide.preflight,
    "caption": caption.preflight,
    "vae": vae_stage.preflight,
    "encode": encoding_preflight.preflight,
    "train": phase.preflight,
    "evaluate": evaluation_preflight.preflight,
}
"""By stage, what of its settings cannot work; given the outputs that the stages before have made
already.
"""
SCORED_BY = (accuracy, likeness, copies, demo_scoring)
"""Modules that register metrics and judges when they are imported."""
LOOKED_AT = ("download", "filter", "caption")
"""Outputs that preflights look at."""


@dataclass(frozen=True)
class Step:
    """One output: its name, the names of its inputs, how to identify and how to make it."""

    name: str
    inputs: tuple[str, ...]
    identify: Callable[[Pipeline, Digests], Identity]
    make: Callable[[Pipeline, Identity, Outputs, Store], Output]

    @property
    def stage(self) -> str:
        return self.name.split(".")[0]


def steps(pipeline: Pipeline) -> list[Step]:
    """The outputs of a pipeline, each after its inputs."""
    scenes = pipeline.download.kind == "scenes"
    site: download.OpenSite = serve_scenes if scenes else download.open_web
    vae = _vae(pipeline)

    found = [
        Step("download", (), download.identify, partial(download.make, site=site)),
        *(
            Step(output.name, output.inputs, output.identify, output.make)
            for output in filter_outputs(pipeline)
        ),
        Step("caption", ("download", "filter"), caption.identify, caption.make),
        *(Step(name, ("download", "filter"), vae_stage.identify, vae_stage.make) for name in vae),
        Step("encode.tokens", ("caption",), tokens.identify, tokens.make),
    ]
    found += [
        Step(name, ("caption", "encode.tokens"), text.identify, text.make)
        for name in _texts(pipeline)
    ]
    found += (
        [Step(features.NAME, ("download", "filter"), features.identify, features.make)]
        if pipeline.encode.features
        else []
    )
    found += list(_latents(pipeline))
    start = pipeline.train.start
    before: tuple[str, ...] = (START,) if start is not None and start.pipeline else ()
    for number, settings in enumerate(pipeline.train.phases):
        name = f"train.{settings.name}"
        inputs = (
            *_trained_on(pipeline, settings.name),
            *vae,
            *_mixed_in(pipeline, settings.name),
            *before,
        )
        found.append(
            Step(
                name,
                inputs,
                partial(phase.identify, number=number),
                partial(phase.make, number=number),
            )
        )
        before = (name,)
    if pipeline.train.phases:
        inputs = ("filter", "caption", *vae, *before)
        found.append(Step(metrics.IMAGES, inputs, images.identify, images.make))
        made = {step.name for step in found}
        found += [
            _metric(metric)
            for metric in metrics.applying(pipeline)
            if made.issuperset(metric.needs)
        ]
    return found


def _metric(metric: metrics.Metric) -> Step:
    return Step(
        metrics.output_name(metric),
        metric.needs,
        partial(metrics.identify, metric=metric),
        partial(metrics.make, metric=metric),
    )


def _vae(pipeline: Pipeline) -> tuple[str, ...]:
    return (VAE,) if pipeline.vae else ()


def _texts(pipeline: Pipeline) -> tuple[str, ...]:
    return ("encode.text",) if pipeline.encode.text_embeddings else ()


def _trained_on(pipeline: Pipeline, resolution: str) -> tuple[str, ...]:
    """The outputs that hold what a phase trains on."""
    aligned = (features.NAME,) if pipeline.train.align_weight else ()
    return (
        "filter",
        "caption",
        "encode.tokens",
        *_texts(pipeline),
        f"encode.{resolution}",
        *aligned,
    )


def _mixed_in(pipeline: Pipeline, resolution: str) -> tuple[str, ...]:
    """The same outputs of the pipelines that are mixed in."""
    numbers = range(len(pipeline.train.mix))
    return tuple(
        mixed_name(number, name) for number in numbers for name in _trained_on(pipeline, resolution)
    )


def _start_identity(pipeline: Pipeline) -> Identity:
    """The identity of the other pipeline's phase that `train.start` names.

    Raises:
        ConfigError: that pipeline has no such phase.
    """
    start = pipeline.train.start
    assert start is not None
    assert start.pipeline is not None
    other = pipeline.mixed[start.pipeline]
    phases = [f"train.{settings.name}" for settings in other.train.phases]
    name = f"train.{start.phase}" if start.phase else next(reversed(phases), "train")
    if name not in phases:
        raise ConfigError(
            f"{pipeline.name} starts from {name} of {start.pipeline}, which has"
            f" {', '.join(phases) or 'no phase'}",
            where="train.start.phase",
            do=f"name a phase of {start.pipeline}, as its resolution with px",
        )
    return identities(other, name)[name]


def _mixed_identities(pipeline: Pipeline, names: set[str]) -> dict[str, Identity]:
    """The identities of some outputs of the pipelines that are mixed in, by `mixed_name`."""
    found = {}
    for number, entry in enumerate(pipeline.train.mix):
        other = pipeline.mixed[entry.pipeline]
        for step in steps(other):
            if mixed_name(number, step.name) in names:
                found[mixed_name(number, step.name)] = identities(other, step.name)[step.name]
        if lacking := sorted(
            name for name in names - set(found) if name.startswith(mixed_name(number, ""))
        ):
            raise ConfigError(
                f"{entry.pipeline} is mixed into {pipeline.name} and does not make"
                f" {lacking[0].partition('/')[2]}",
                where="train.mix",
                do=(
                    f"give {entry.pipeline} the same resolutions in train.phases and the same"
                    " encode.text_embeddings and encode.features"
                ),
            )
    return found


def _latents(pipeline: Pipeline) -> Iterator[Step]:
    """Latents by resolution: encoded ones with the larger ones that the same decoding can make,
    then those downscaled from them.
    """
    encoded = [size for size, larger in pipeline.encoded_from.items() if larger is None]
    for size, larger in pipeline.encoded_from.items():
        name = f"encode.{size}px"
        inputs = ("download", "filter", *_vae(pipeline))
        if larger is None:
            also = encoded[encoded.index(size) + 1 :]
            yield Step(
                name,
                inputs,
                partial(latents.identify, resolution=size),
                partial(latents.make, resolution=size, also=also),
            )
        else:
            yield Step(
                name,
                (*inputs, f"encode.{larger}px"),
                partial(downscaled.identify, resolution=size, larger=larger),
                partial(downscaled.make, resolution=size, larger=larger),
            )


def identities(pipeline: Pipeline, name: str | None = None) -> dict[str, Identity]:
    """The identity of every output, or of `name` and all that it comes from, known before anything
    is made.

    Models that only other outputs need may still be missing.

    Raises:
        ConfigError: a pipeline that is mixed in lacks an output that is needed.
    """
    every = steps(pipeline)
    needed = {name} if name else {step.name for step in every}
    for step in reversed(every):
        if step.name in needed:
            needed.update(step.inputs)
    found = _mixed_identities(pipeline, needed)
    if START in needed:
        found[START] = _start_identity(pipeline)
    for step in every:
        if step.name in needed:
            found[step.name] = step.identify(
                pipeline, {given: found[given].digest for given in step.inputs}
            )
    return found


def chosen(
    pipeline: Pipeline, start_from: str | None = None, stop_after: str | None = None
) -> list[Step]:
    """The steps from one stage to another, both inclusive; `train.256px` names a single output.

    Raises:
        ConfigError: a name that the pipeline does not have, or an order that leaves nothing.
    """
    every = steps(pipeline)
    first = min(_places(every, start_from)) if start_from else 0
    last = max(_places(every, stop_after)) if stop_after else len(every) - 1
    if first > last:
        raise ConfigError(
            f"{start_from} comes after {stop_after}", do="exchange --from and --until"
        )
    return every[first : last + 1]


def _places(every: list[Step], name: str) -> list[int]:
    places = [place for place, step in enumerate(every) if name in (step.stage, step.name)]
    if not places and name == VAE:
        raise ConfigError(
            "this pipeline has no stage vae",
            where="vae",
            do="configure it, for example --set vae.num_images=24000",
        )
    if not places:
        raise ConfigError(
            f"there is no stage {name!r}",
            do=f"use one of {', '.join((*STAGE_NAMES, *(s.name for s in every if '.' in s.name)))}",
        )
    return places


def problems(
    pipeline: Pipeline, store: Store, start_from: str | None = None, stop_after: str | None = None
) -> list[InputError]:
    """What would make the stages from one to another fail, as far as settings, this machine and
    finished outputs say.

    Stages whose outputs are all in the store are left out: nothing of them will run.

    Raises:
        ConfigError: there is no such part of the pipeline.
    """
    wanted = chosen(pipeline, start_from, stop_after)
    made = {name: output for name in LOOKED_AT if (output := _made(pipeline, store, name))}
    found: list[InputError] = []
    for stage, of_stage in itertools.groupby(wanted, key=lambda step: step.stage):
        refusals = list(_refusals(stage, pipeline, made))
        if refusals and not all(_made(pipeline, store, step.name) for step in of_stage):
            found += refusals
    found += _missing_inputs(pipeline, store, wanted)
    found += _unfit_origins(pipeline, store, wanted)
    return list({str(error): error for error in found}.values())  # stages share components


def _refusals(stage: str, pipeline: Pipeline, made: Outputs) -> Iterator[InputError]:
    try:
        yield from PREFLIGHTS[stage](pipeline, made)
    except InputError as error:  # nothing after it could be checked
        yield error


def _missing_inputs(pipeline: Pipeline, store: Store, wanted: list[Step]) -> Iterator[InputError]:
    """Of the outputs that `wanted` begin with: the first that is missing, and the first of each
    pipeline that is mixed in.
    """
    making = {step.name for step in wanted}
    reported: set[str] = set()
    for step in wanted:
        for name in step.inputs:
            origin = name.rpartition("/")[0]
            if name in making or origin in reported or _made(pipeline, store, step.name):
                continue
            try:
                identity = identities(pipeline, step.name)[name]
            except InputError:  # a component is missing, which the stage's preflight tells
                continue
            if not (store.folder(identity) / MANIFEST).exists():
                reported.add(origin)
                yield _not_there(pipeline, store, identity, name, step.name)


def _unfit_origins(pipeline: Pipeline, store: Store, wanted: list[Step]) -> Iterator[InputError]:
    """Of trainings: checkpoints that they cannot go on from, and pipelines that cannot be mixed
    in.
    """
    for number, settings in enumerate(pipeline.train.phases):
        name = f"train.{settings.name}"
        if all(step.name != name for step in wanted) or _made(pipeline, store, name):
            continue
        try:
            known = identities(pipeline, name)
        except InputError as error:
            if pipeline.mixed:  # of this pipeline alone the stages' own preflights tell
                yield error
            continue
        yield from raised_by(partial(phase.check_resume, pipeline, known[name], store, number))
        for place, entry in enumerate(pipeline.train.mix):
            for needed in _trained_on(pipeline, settings.name):
                own = known[needed]
                other = known[mixed_name(place, needed)]
                if needed.startswith("encode.") and (what := _differs(own, other)):
                    yield ConfigError(
                        f"{entry.pipeline} cannot be mixed into {pipeline.name}: its {needed} is"
                        f" made with another {what}",
                        where="train.mix",
                        do="prepare both with the same components and settings of encode",
                    )


def _differs(own: Identity, other: Identity) -> str | None:
    """What keeps samples of two outputs from standing in one batch."""
    both = own.weights.keys() & other.weights.keys()
    if own.inputs.get(VAE) != other.inputs.get(VAE):
        return "autoencoder"
    if own.name.endswith("px") and own.config["dtype"] != other.config["dtype"]:
        return "encode.dtype"
    return next((name for name in sorted(both) if own.weights[name] != other.weights[name]), None)


def preflight(
    pipeline: Pipeline, store: Store, start_from: str | None = None, stop_after: str | None = None
) -> None:
    """Raise one error that lists all `problems`, if there are any."""
    error = combined(problems(pipeline, store, start_from, stop_after))
    if error is not None:
        raise error


def _made(pipeline: Pipeline, store: Store, name: str) -> Output | None:
    """An output by its manifest, where it is finished."""
    try:
        identity = identities(pipeline, name).get(name)
        return None if identity is None else read_output(store.folder(identity))
    except (FileNotFoundError, DamagedError, InputError):
        return None


@dataclass(frozen=True)
class StageResult:
    """A step and its output; `cached` if the store had it already."""

    step: Step
    output: Output
    cached: bool


def run_step(pipeline: Pipeline, store: Store, name: str) -> StageResult:
    """Make one output, unless it is there; its inputs have to be there.

    Raises:
        InputError: an input is not in the store.
        DamagedError: an input's file is not what was written; it was set aside, and the same
            command again mends it.
    """
    forget_launchers()
    known = identities(pipeline, name)
    step = next(step for step in steps(pipeline) if step.name == name)
    ready = store.find(known[name])
    if ready is not None:
        with in_use([ready.path]):
            return StageResult(step, ready, cached=True)
    inputs = {needed: _need(pipeline, store, known[needed], needed, name) for needed in step.inputs}
    try:
        # Trainings keep the count that they began with; every other stage computes with one thread
        # an operation.
        with (
            in_use(output.path for output in inputs.values()),
            cpu_threads(None if step.stage in TRAININGS else 1),
        ):
            return StageResult(step, step.make(pipeline, known[name], inputs, store), cached=False)
    except DamagedError as error:
        for output in inputs.values():
            # Found only now, by a page checksum or a hash: the next run makes the file anew.
            if Path(str(error.where)).resolve().is_relative_to(output.path.resolve()):
                set_aside(output.path, error)
        raise


def _need(pipeline: Pipeline, store: Store, identity: Identity, name: str, asked_by: str) -> Output:
    output = store.find(identity)
    if output is None:
        raise _not_there(pipeline, store, identity, name, asked_by)
    return output


def _not_there(
    pipeline: Pipeline, store: Store, identity: Identity, name: str, asked_by: str
) -> InputError:
    of = ""
    do = f"run from an earlier stage: --from {identity.name.split('.')[0]}"
    start = pipeline.train.start
    if name == START and start is not None:
        of = f" of the pipeline {start.pipeline}"
        do = f"hdm run {start.pipeline} --until {identity.name}"
    for number, entry in enumerate(pipeline.train.mix):
        if name.startswith(mixed_name(number, "")):
            of = f" of the pipeline {entry.pipeline}"
            do = f"hdm run {entry.pipeline} --until encode"
    return InputError(
        f"{asked_by} needs {identity.name}{of}, which is not in the store with these settings",
        where=store.folder(identity),
        do=do,
    )


def run(
    pipeline: Pipeline, store: Store, start_from: str | None = None, stop_after: str | None = None
) -> Iterator[StageResult]:
    """Make what is missing, in order, without Prefect."""
    for step in chosen(pipeline, start_from, stop_after):
        yield run_step(pipeline, store, step.name)
