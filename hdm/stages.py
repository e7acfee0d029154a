"""The pipeline as a list of outputs: what each needs, its identity, and the one call that makes it.

A stage makes one output or several (`encode.64px`, `encode.128px`); adding one does not redo the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hdm.acquisition import download
from hdm.acquisition.sites import served_set
from hdm.captioning import caption
from hdm.child import forget_launchers
from hdm.config import Pipeline
from hdm.curation import decide
from hdm.curation.outputs import filter_outputs
from hdm.demo import scoring as demo_scoring
from hdm.demo import site as demo_site
from hdm.emoji import asking as emoji_asking
from hdm.encoding import downscaled, features, latents, text, tokens
from hdm.encoding import preflight as encoding_preflight
from hdm.errors import ConfigError, DamagedError, InputError, combined, raised_by
from hdm.evaluation import (
    accuracy,
    copies,
    density_coverage,
    embeddings,
    frechet_infinity,
    images,
    likeness,
    precision_recall,
)
from hdm.evaluation import preflight as evaluation_preflight
from hdm.extensions import MODULES, extensions
from hdm.models.components import VAE
from hdm.models.devices import cpu_threads
from hdm.parts.preflight import check_execution
from hdm.scoring import metrics
from hdm.stage_list import Stage, added_stages, stage_names, stages
from hdm.stage_work import SMALL_BYTES, AddedStage, Numbers, OutputStep, Size, StageWork
from hdm.store import MANIFEST, Identity, Output, Outputs, Store, in_use, read_output, set_aside
from hdm.training import phase
from hdm.training.process.job import START, mixed_name, mixed_part
from hdm.vae import stage as vae_stage

TRAININGS = ("train", VAE)
SCORED_BY = (
    accuracy,
    likeness,
    precision_recall,
    density_coverage,
    frechet_infinity,
    copies,
    demo_scoring,
)
"""Modules that register metrics and judges when they are imported."""
DATA_SETS = (demo_site, emoji_asking)
"""Modules that register this package's own data sets, and prompts that a person judges."""
LOOKED_AT = ("download", "filter", "caption")
"""Outputs that preflights read."""


def steps(pipeline: Pipeline) -> list[OutputStep[Pipeline]]:
    """The outputs of a pipeline, each after its inputs."""
    extensions(MODULES)  # criteria and metrics of other packages
    every: list[OutputStep[Pipeline]] = []
    names: list[str] = []
    for stage in stages():
        # An installed package changes no pipeline by itself: its stage runs where it has settings.
        if stage.settings is not None and stage.name not in pipeline.stages:
            continue
        for step in _work(stage).outputs(pipeline, tuple(names)):
            # Users name outputs in --from and --until, and messages derive the stage from the name.
            if step.stage != stage.name:
                raise ValueError(f"{step.name}: outputs of {stage.name} begin with its name")
            every.append(step)
            names.append(step.name)
    return every


def _work(stage: Stage) -> StageWork[Pipeline]:
    return stage.work if isinstance(stage, AddedStage) else OWN_WORK[stage.name]


def _download(pipeline: Pipeline, before: Collection[str]) -> Iterator[OutputStep[Pipeline]]:
    served = served_set(pipeline)
    site = served.open if served else download.open_web
    yield OutputStep("download", (), download.identify, partial(download.make, site=site))


def _caption(pipeline: Pipeline, before: Collection[str]) -> Iterator[OutputStep[Pipeline]]:
    yield OutputStep("caption", ("download", "filter"), caption.identify, caption.make)


def _finetuning(pipeline: Pipeline, before: Collection[str]) -> Iterator[OutputStep[Pipeline]]:
    for name in _vae(pipeline):
        yield OutputStep(name, ("download", "filter"), vae_stage.identify, vae_stage.make)


def _encode(pipeline: Pipeline, before: Collection[str]) -> Iterator[OutputStep[Pipeline]]:
    yield OutputStep("encode.tokens", ("caption",), tokens.identify, tokens.make)
    for name in _texts(pipeline):
        yield OutputStep(name, ("caption", "encode.tokens"), text.identify, text.make)
    if pipeline.encode.features:
        inputs = ("download", "filter")
        yield OutputStep(features.NAME, inputs, features.identify, features.make)
    yield from _latents(pipeline)


def _train(pipeline: Pipeline, before: Collection[str]) -> Iterator[OutputStep[Pipeline]]:
    start = pipeline.train.start
    weights: tuple[str, ...] = (START,) if start is not None and start.pipeline else ()
    for number, settings in enumerate(pipeline.train.phases):
        name = f"train.{settings.name}"
        inputs = (
            *_trained_on(pipeline, settings.name),
            *_vae(pipeline),
            *_mixed_in(pipeline, settings.name),
            *weights,
        )
        identify = partial(phase.identify, number=number)
        yield OutputStep(name, inputs, identify, partial(phase.make, number=number))
        weights = (name,)


def _evaluate(pipeline: Pipeline, before: Collection[str]) -> Iterator[OutputStep[Pipeline]]:
    if not pipeline.train.phases:
        return
    last = f"train.{pipeline.train.phases[-1].name}"
    inputs = ("filter", "caption", *_vae(pipeline), last)
    yield OutputStep(metrics.IMAGES, inputs, images.identify, images.make)
    readable = {*before, metrics.IMAGES}
    if embeddings.REAL in before:
        inputs = embeddings.INPUTS
        # What a forward pass of the model costs is not known.
        size = _size_of_scores(None)
        yield OutputStep(metrics.EMBEDDINGS, inputs, embeddings.identify, embeddings.make, size)
        readable.add(metrics.EMBEDDINGS)
    for metric in metrics.applying(pipeline):
        if readable.issuperset(metric.needs):
            yield _metric(metric)


def _metric(metric: metrics.Metric) -> OutputStep[Pipeline]:
    return OutputStep(
        metrics.output_name(metric),
        metric.needs,
        partial(metrics.identify, metric=metric),
        partial(metrics.make, metric=metric),
        _size_of_scores(metric.flops),
    )


def _size_of_scores(flops: float | None) -> Callable[[Pipeline, Numbers], Size]:
    return lambda _, numbers: Size(numbers.images, SMALL_BYTES, flops)


def _vae(pipeline: Pipeline) -> tuple[str, ...]:
    return (VAE,) if pipeline.vae else ()


def _texts(pipeline: Pipeline) -> tuple[str, ...]:
    return ("encode.text",) if pipeline.encode.text_embeddings else ()


def _trained_on(pipeline: Pipeline, resolution: str) -> tuple[str, ...]:
    """The outputs that a phase trains on."""
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
    names: list[str] = []
    for number in range(len(pipeline.train.mix)):
        # Numbered, not named: renaming a mixed-in pipeline changes no digest.
        names += [mixed_name(number, name) for name in _trained_on(pipeline, resolution)]
    return tuple(names)


def _latents(pipeline: Pipeline) -> Iterator[OutputStep[Pipeline]]:
    """Latents by resolution. Each encoded one also names the larger ones that can share its
    decoding; downscaled ones come from a larger resolution's latents.
    """
    encoded = [size for size, larger in pipeline.encoded_from.items() if larger is None]
    for size, larger in pipeline.encoded_from.items():
        name = f"encode.{size}px"
        inputs = ("download", "filter", *_vae(pipeline))
        if larger is None:
            also = encoded[encoded.index(size) + 1 :]
            yield OutputStep(
                name,
                inputs,
                partial(latents.identify, resolution=size),
                partial(latents.make, resolution=size, also=also),
            )
        else:
            yield OutputStep(
                name,
                (*inputs, f"encode.{larger}px"),
                partial(downscaled.identify, resolution=size, larger=larger),
                partial(downscaled.make, resolution=size, larger=larger),
            )


OWN_WORK: dict[str, StageWork[Pipeline]] = {
    "download": StageWork(_download, download.preflight),
    "filter": StageWork(filter_outputs, decide.preflight),
    "caption": StageWork(_caption, caption.preflight),
    "vae": StageWork(_finetuning, vae_stage.preflight),
    "encode": StageWork(_encode, encoding_preflight.preflight),
    "train": StageWork(_train, phase.preflight),
    "evaluate": StageWork(_evaluate, evaluation_preflight.preflight),
}
"""The work of this package's stages, by name."""


class OutputGraph:
    """The outputs of a pipeline and their identities, known before anything is made.

    An identity is worked out when it is first asked for, so models that only other outputs need may
    still be missing. It is then kept: make a new graph where models on disk may have changed.

    Args:
        pipeline: the settings.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.steps = steps(pipeline)
        self._steps = {step.name: step for step in self.steps}
        self._known: dict[str, Identity] = {}
        self._mixed: dict[int, OutputGraph] = {}

    def step(self, name: str) -> OutputStep[Pipeline]:
        """The step that makes an output of this pipeline."""
        return self._steps[name]

    def identity(self, name: str) -> Identity:
        """The identity of an output, or of an input from another pipeline (`START`, `mixed_name`).

        Raises:
            ConfigError: the other pipeline has no such output.
            InputError: a model is missing.
        """
        if name not in self._known:
            self._known[name] = self._identify(name)
        return self._known[name]

    def identities(self, name: str | None = None) -> dict[str, Identity]:
        """The identities of all outputs, or of `name` and everything it derives from."""
        needed = {name} if name else set(self._steps)
        # Inputs come before the outputs that need them, so one pass backwards finds all of them.
        for step in reversed(self.steps):
            if step.name in needed:
                needed.update(step.inputs)
        from_elsewhere = sorted(needed - self._steps.keys())
        return {one: self.identity(one) for one in (*from_elsewhere, *self._steps) if one in needed}

    def made(self, store: Store, name: str) -> Output | None:
        """An output by its manifest, if it is finished. `run_step` compares the contents, not
        this.
        """
        if name not in self._steps:
            return None
        try:
            return read_output(store.folder(self.identity(name)))
        except (FileNotFoundError, DamagedError, InputError):
            return None

    def _identify(self, name: str) -> Identity:
        if name == START:
            return self._start_identity()
        mixed = mixed_part(name)
        if mixed is not None:
            return self._mixed_identity(*mixed)
        step = self._steps[name]
        digests = {given: self.identity(given).digest for given in step.inputs}
        return step.identify(self.pipeline, digests)

    def _start_identity(self) -> Identity:
        """The identity of the other pipeline's phase that `train.start` names."""
        start = self.pipeline.train.start
        assert start is not None
        assert start.pipeline is not None
        other = self.pipeline.mixed[start.pipeline]
        phases = [f"train.{settings.name}" for settings in other.train.phases]
        name = f"train.{start.phase}" if start.phase else next(reversed(phases), "train")
        if name not in phases:
            raise ConfigError(
                f"{self.pipeline.name} starts from {name} of {start.pipeline}, which has"
                f" {', '.join(phases) or 'no phase'}",
                where="train.start.phase",
                do=f"name a phase of {start.pipeline}, as its resolution with px",
            )
        return OutputGraph(other).identity(name)

    def _mixed_identity(self, number: int, name: str) -> Identity:
        """The identity of an output of the pipeline that is mixed in under that number."""
        entry = self.pipeline.train.mix[number]
        if number not in self._mixed:
            self._mixed[number] = OutputGraph(self.pipeline.mixed[entry.pipeline])
        other = self._mixed[number]
        if name not in other._steps:
            raise ConfigError(
                f"{entry.pipeline} is mixed into {self.pipeline.name} and does not make {name}",
                where="train.mix",
                do=(
                    f"give {entry.pipeline} the same resolutions in train.phases and the same"
                    " encode.text_embeddings and encode.features"
                ),
            )
        return other.identity(name)


def chosen(
    pipeline: Pipeline, start_from: str | None = None, stop_after: str | None = None
) -> list[OutputStep[Pipeline]]:
    """The steps from one stage to another, both inclusive; `train.256px` names a single output.

    Raises:
        ConfigError: a name that the pipeline does not have, or an order that leaves nothing.
    """
    return _chosen(steps(pipeline), start_from, stop_after)


def _chosen(
    every: list[OutputStep[Pipeline]], start_from: str | None, stop_after: str | None
) -> list[OutputStep[Pipeline]]:
    first = min(_places(every, start_from)) if start_from else 0
    last = max(_places(every, stop_after)) if stop_after else len(every) - 1
    if first > last:
        raise ConfigError(
            f"{start_from} comes after {stop_after}", do="exchange --from and --until"
        )
    return every[first : last + 1]


def _places(every: list[OutputStep[Pipeline]], name: str) -> list[int]:
    places = [place for place, step in enumerate(every) if name in (step.stage, step.name)]
    if not places and name == VAE:
        raise ConfigError(
            "this pipeline has no stage vae",
            where="vae",
            do="configure it, for example --set vae.num_images=24000",
        )
    if not places and name in added_stages():
        raise ConfigError(
            f"this pipeline has no stage {name}",
            where="stages",
            do=f"configure it, for example --set stages.{name}={{}}",
        )
    if not places:
        outputs = [step.name for step in every if "." in step.name]
        raise ConfigError(
            f"there is no stage {name!r}",
            do=f"use one of {', '.join((*stage_names(), *outputs))}",
        )
    return places


def problems(
    pipeline: Pipeline, store: Store, start_from: str | None = None, stop_after: str | None = None
) -> list[InputError]:
    """The reasons why a run from one stage to another would fail, as far as settings, this machine
    and finished outputs show.

    Stages whose outputs are all in the store are left out, because they will not run.

    Raises:
        ConfigError: the pipeline has no such stages.
    """
    graph = OutputGraph(pipeline)
    wanted = _chosen(graph.steps, start_from, stop_after)
    made = {name: output for name in LOOKED_AT if (output := graph.made(store, name))}
    found: list[InputError] = list(raised_by(partial(check_execution, pipeline.execution)))
    for stage in stages():
        of_stage = [step for step in wanted if step.stage == stage.name]
        refusals = list(_refusals(stage, pipeline, made)) if of_stage else []
        if refusals and not all(graph.made(store, step.name) for step in of_stage):
            found += refusals
    found += _missing_inputs(graph, store, wanted)
    found += _unfit_origins(graph, store, wanted)
    return list({str(error): error for error in found}.values())  # stages share components


def _refusals(stage: Stage, pipeline: Pipeline, made: Outputs) -> Iterator[InputError]:
    try:
        yield from _work(stage).preflight(pipeline, made)
    except InputError as error:  # the checks that follow it cannot run either
        yield error


def _missing_inputs(
    graph: OutputGraph, store: Store, wanted: list[OutputStep[Pipeline]]
) -> Iterator[InputError]:
    """The first missing output that the wanted steps start from, and the first of each mixed-in
    pipeline.
    """
    making = {step.name for step in wanted}
    reported: set[str] = set()
    for step in wanted:
        for name in step.inputs:
            origin = name.rpartition("/")[0]
            if name in making or origin in reported or graph.made(store, step.name):
                continue
            try:
                identity = graph.identity(name)
            except InputError:  # a component is missing, which the stage's preflight reports
                continue
            if not (store.folder(identity) / MANIFEST).exists():
                reported.add(origin)
                yield _not_there(graph.pipeline, store, identity, name, step.name)


def _unfit_origins(
    graph: OutputGraph, store: Store, wanted: list[OutputStep[Pipeline]]
) -> Iterator[InputError]:
    """Checkpoints that trainings cannot resume from, and pipelines that cannot be mixed in."""
    pipeline = graph.pipeline
    for number, settings in enumerate(pipeline.train.phases):
        name = f"train.{settings.name}"
        if all(step.name != name for step in wanted) or graph.made(store, name):
            continue
        try:
            known = graph.identities(name)
        except InputError as error:
            if pipeline.mixed:  # without others, the stages' own preflights report it
                yield error
            continue
        yield from raised_by(partial(phase.check_resume, pipeline, known[name], store, number))
        for place, entry in enumerate(pipeline.train.mix):
            for needed in _trained_on(pipeline, settings.name):
                own = known[needed]
                other = known[mixed_name(place, needed)]
                what = _differs(own, other) if needed.startswith("encode.") else None
                if what is not None:
                    yield ConfigError(
                        f"{entry.pipeline} cannot be mixed into {pipeline.name}: its {needed} is"
                        f" made with another {what}",
                        where="train.mix",
                        do="prepare both with the same components and settings of encode",
                    )


def _differs(own: Identity, other: Identity) -> str | None:
    """What prevents samples of two outputs from sharing a batch; None if nothing does."""
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


@dataclass(frozen=True)
class StageResult:
    """A step and its output; `cached` if the store had it already."""

    step: OutputStep[Pipeline]
    output: Output
    cached: bool


def run_step(pipeline: Pipeline, store: Store, name: str) -> StageResult:
    """Make one output unless the store has it; its inputs must be in the store.

    Raises:
        InputError: an input is not in the store.
        DamagedError: an input's file is not what was written. It was set aside; running the same
            command again repairs it.
    """
    # Launchers' variables would change results under the same digest.
    forget_launchers()
    graph = OutputGraph(pipeline)
    step = graph.step(name)
    identity = graph.identity(name)
    ready = store.find(identity)
    if ready is not None:
        with in_use([ready.path]):
            return StageResult(step, ready, cached=True)
    inputs = {needed: _need(graph, store, needed, name) for needed in step.inputs}
    try:
        # The number of threads changes how sums are rounded. Trainings keep the number that they
        # began with; every other stage uses one thread per operation.
        with (
            in_use(output.path for output in inputs.values()),
            cpu_threads(None if step.stage in TRAININGS else 1),
        ):
            return StageResult(step, step.make(pipeline, identity, inputs, store), cached=False)
    except DamagedError as error:
        for output in inputs.values():
            # Found only now, by a page checksum or a hash: the next run makes the file again.
            if Path(str(error.where)).resolve().is_relative_to(output.path.resolve()):
                set_aside(output.path, error)
        raise


def _need(graph: OutputGraph, store: Store, name: str, asked_by: str) -> Output:
    identity = graph.identity(name)
    output = store.find(identity)
    if output is None:
        raise _not_there(graph.pipeline, store, identity, name, asked_by)
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
    mixed = mixed_part(name)
    if mixed is not None:
        number, _ = mixed
        other = pipeline.train.mix[number].pipeline
        of = f" of the pipeline {other}"
        do = f"hdm run {other} --until encode"
    return InputError(
        f"{asked_by} needs {identity.name}{of}, which is not in the store with these settings",
        where=store.folder(identity),
        do=do,
    )


def run(
    pipeline: Pipeline, store: Store, start_from: str | None = None, stop_after: str | None = None
) -> Iterator[StageResult]:
    """Make the missing outputs in order, without Prefect."""
    for step in chosen(pipeline, start_from, stop_after):
        yield run_step(pipeline, store, step.name)
