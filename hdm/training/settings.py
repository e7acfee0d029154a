"""How the denoiser is trained."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from hdm import values
from hdm.architecture import XUTConfig
from hdm.captioning import settings as captioning
from hdm.curation import settings as curation
from hdm.errors import ConfigError
from hdm.models.settings import Components, WithAutoencoder
from hdm.settings import Settings, runtime, since
from hdm.values import Within


class Optimizer(Settings):
    kind: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the blocks' matrices, AdamW for everything else."""
    learning_rate: values.LearningRate = 3e-4
    """AdamW's rate; with `per_fan_in` the base rate that each tensor divides by its fan-in."""
    muon_learning_rate: values.LearningRate = 0.02
    """Muon's rate."""
    per_fan_in: bool = False
    state_bits: Literal[32, 8] = since("0.1.0", 32)
    """Of AdamW's two averages; 8 (bitsandbytes, which has to be installed) takes a quarter of their
    memory.
    """
    betas: tuple[values.Rate, values.Rate] = (0.9, 0.99)
    weight_decay: Annotated[float, Within(0, 100)] = 0.01
    clip_norm: values.PositiveWeight = 1.0
    warmup_images: values.CountOrNone = 0
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    """wsd: constant, then a linear fall over the last fifth."""
    final_rate: values.Share = 0.01
    """Where the schedule ends, as a share of the rate."""


class Phase(Settings):
    """One step of rising resolution."""

    resolution: values.Side
    """Shorter side in pixels, and side of the square crop."""
    num_images: values.Count
    """Images seen (the training clock), repetitions counted."""
    batch_size: values.Batch
    """Images an optimizer step, over all processes."""
    tread_rate: values.Rate = 0.5
    """Share of the image tokens that skip the route (TREAD, arXiv 2501.04765)."""
    tread_schedule: tuple[tuple[values.Share, values.Rate], ...] | None = None
    """Rates instead of the one above, as [from which share of the phase on, rate], the first from
    0: [[0, 0.75], [0.9, 0]] ends the phase with a tenth on all tokens (SPRINT, arXiv 2510.21986).
    None: `tread_rate` all along.
    """
    tread_route: tuple[values.Blocks, values.Blocks] | None = None
    """The blocks that dropped tokens skip, [start, end) in the order in which blocks run; None: the
    whole U, as published.
    """
    max_tokens: values.Tokens | None = None
    """Text tokens a caption may have here; None: as encoded."""
    timestep_shift: values.Shift = 1.0
    optimizer: Optimizer = Optimizer()
    resume_from: str | None = since("0.1.0", None, pattern=r"^[0-9a-f]+@[0-9]+$")
    """DIGEST@STEP: start from a checkpoint of an unfinished training of this phase with other
    settings, in this store; data goes on after the images that it had seen. None: from the phase
    before.
    """
    resume_allow: tuple[str, ...] = runtime(())
    """The settings that may differ from those, by name, as train.phases.0.optimizer.learning_rate;
    any other that differs is refused.
    """
    micro_batch: values.Batch | None = runtime(None)
    """Images a forward pass on one device; None: the whole share at once."""
    checkpoint_blocks: values.Share = runtime(0.0)
    """Share of the blocks, spread evenly, whose activations are recomputed instead of kept."""

    @property
    def name(self) -> str:
        return f"{self.resolution}px"

    @property
    def tread_rates(self) -> tuple[tuple[float, float], ...]:
        """The rate over the phase, as `tread_schedule`."""
        return self.tread_schedule or ((0.0, self.tread_rate),)

    @field_validator("tread_schedule")
    @classmethod
    def _in_order(
        cls, schedule: tuple[tuple[float, float], ...] | None
    ) -> tuple[tuple[float, float], ...] | None:
        if schedule is not None:
            starts = [start for start, _ in schedule]
            if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
                raise ValueError(
                    "the first entry begins at 0 and each later one after the one before"
                )
        return schedule


class MixedIn(Settings):
    """Pictures of another pipeline to train on."""

    pipeline: str = runtime(...)
    """Entry of pipelines.yaml whose latents and captions they are; `hdm run NAME --until encode`
    makes them.
    """
    weight: values.PositiveWeight = 1.0
    """How many of them are seen for each one of this pipeline's own."""


class Start(Settings):
    """Where the first phase's weights come from. Digests hold the hash of the weights, not these
    names.
    """

    weights: str | None = runtime(None)
    """A .safetensors file or the folder that holds it, as `hdm weights import` writes them; what
    training wrote; a diffusers folder; a Lightning checkpoint.
    """
    pipeline: str | None = runtime(None)
    """Entry of pipelines.yaml whose averaged weights they are; `hdm run NAME --until train` makes
    them.
    """
    phase: str | None = runtime(None, pattern=r"^[1-9][0-9]*px$")
    """Of that pipeline, as 256px; None: its last."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Start:
        if (self.weights is None) == (self.pipeline is None):
            raise ConfigError(
                "train.start names either weights on disk or another pipeline",
                where="train.start",
                do="set train.start.weights or train.start.pipeline, and only one of them",
            )
        if self.phase is not None and self.pipeline is None:
            raise ConfigError(
                "train.start.phase is a phase of another pipeline, and none is named",
                where="train.start.phase",
                do="set train.start.pipeline too, or leave it out",
            )
        return self


def _read_model(value: Any, read_xut: ValidatorFunctionWrapHandler) -> Any:
    """Of another kind than XUT by its own class; pydantic names the field of an XUT's faults."""
    if not isinstance(value, Mapping) or "kind" not in value:
        return value if isinstance(value, XUTConfig) else read_xut(value)
    return XUTConfig.from_dict(value)


class TrainSettings(Settings):
    model: Annotated[XUTConfig, WrapValidator(_read_model), PlainSerializer(XUTConfig.to_dict)] = (
        XUTConfig()
    )
    """An XUT; another denoiser where `kind` names one that an installed package adds."""
    phases: tuple[Phase, ...] = Field((), max_length=16)
    start: Start | None = since("0.2.0", None)
    """Weights to start from, as {weights: models/imported} or {pipeline: NAME, phase: 256px}; None:
    new ones from the seed.
    """
    mix: tuple[MixedIn, ...] = since("0.1.0", ())
    """Other pipelines whose pictures are trained on too, as [{pipeline: NAME, weight: 0.5}]; this
    pipeline's own have weight 1. Held-out losses, prompts and evaluation are of its own pictures
    alone.
    """
    seed: values.Seed = 0
    caption_dropout: values.Rate = 0.1
    """Share of images trained with the empty caption, for guidance."""
    contrastive_weight: values.Rate = 0.0
    """Of the distance to a neighbour's velocity, which is taken off the loss (contrastive flow
    matching: 0.05); 0: plain flow matching.
    """
    tag_drop: values.Rate = since("0.1.0", 0.0)
    group_drop: values.Rate = since("0.1.0", 0.0)
    """Shares of the tags and of the groups of tags that are left out, anew at every image seen, of
    captions written `kept tags ||| group %% group`, tags split by `$$`; the published recipe has
    0.25 and 0.3. The text encoder has to run in training.
    """
    tag_shuffle: bool = since("0.1.0", False)
    """Put their groups, and the tags in each, into another order every time."""
    min_snr_gamma: values.PositiveWeight | None = since("0.1.0", None)
    """Weigh losses by time as min-SNR-γ does (arXiv 2303.09556: 5), brought to velocities and to a
    mean of 1; None: all the same.
    """
    dropout: values.Rate = since("0.1.0", 0.0)
    """Of what attention and feed-forward add to the tokens."""
    align_weight: values.Weight = since("0.1.0", 0.0)
    """Of the pull of one block's image tokens towards `encode.features`, by cosine (REPA, arXiv
    2410.06940: 0.5). 0: without.
    """
    align_block: values.Blocks | None = since("0.1.0", None)
    """Whose output is pulled, counted from 0 in the order in which blocks run; None: the one a
    third in.
    """
    ema_decay: values.Rate = 0.999
    """Of the weights' moving average, per step, reached after a ramp."""
    ema_lengths: tuple[values.EmaLength, ...] = since("0.1.0", ())
    """Of power-function averages kept beside it (EDM2, arXiv 2312.02696), as shares of the phase;
    from two of them, say [0.05, 0.1], `hdm ema` makes one of any length afterwards. Each costs the
    memory of the weights.
    """
    ema_snapshots: values.Few = since("0.1.0", 8)
    """How often in a phase these are written down, evenly; each costs the room of the weights."""
    crop: Literal["shifted", "centre"] = "shifted"
    mirror: bool = since("0.1.0", False)
    """Exchange left and right in half of the images whose captions speak neither of sides nor of
    writing (English words alone are known). It is the latent that is mirrored, which is not the
    mirrored picture's latent: with the demo's autoencoder the two differ by 0.79 of their norm, and
    it decodes to 21 dB instead of 33. Only for an autoencoder that commutes with mirroring.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products (autocast); weights stay float32."""
    validate_every: values.Count | None = None
    """Steps between held-out losses; None: at the end only."""
    validate_raw: bool = since("0.1.0", False)
    """Tell the held-out loss of the weights as they are too, not of their average alone."""
    watch: Literal["validation_loss", "raw_validation_loss"] = since("0.1.0", "validation_loss")
    """The held-out loss that `keep` and `patience` go by."""
    keep: Literal["last", "best"] = since("0.1.0", "last")
    """Which weights come out of a phase: those at its end, or those whose held-out loss was
    lowest.
    """
    patience: values.Count | None = since("0.1.0", None)
    """Held-out losses in a row, none the lowest yet, after which a phase ends before its last step;
    None: none end it.
    """
    prompts: tuple[str, ...] = ()
    """Generated at each phase's end at fixed seeds; empty: captions of held-out pictures."""
    generate_every: values.Count | None = since("0.1.0", None)
    """Images seen between two times that they are generated during a phase, by the averaged
    weights; None: at the end alone.
    """
    checkpoint_sec: values.Seconds = runtime(600.0)
    """Seconds between checkpoints."""
    num_processes: values.Workers = runtime(1)
    sharding: Literal["none", "full"] = runtime("none")
    """full: weights, gradients, averages and optimizer state are spread over the processes (FSDP2),
    for a model that one device does not hold with them; slower, the same files. none: every process
    has all (DDP).
    """
    device: values.Device = runtime("auto")
    peak_tflops: values.Tflops | None = runtime(None)
    """What one device does at most, in 10¹² operations a second, for the utilisation in the logs;
    None: a matrix product is measured.
    """
    price_per_hour: values.Price | None = runtime(None)
    """Of all devices together, for the cost in the logs; None: logs show no cost."""
    compile: bool = runtime(False)
    """Compile the blocks (torch.compile); the first steps take minutes."""

    @model_validator(mode="after")
    def _names_differ(self) -> TrainSettings:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"two phases have the same resolution: {', '.join(names)}")
        return self

    @property
    def redraws_tags(self) -> bool:
        """Whether captions with tags are written anew at every image seen."""
        return self.tag_shuffle or self.tag_drop > 0 or self.group_drop > 0

    @property
    def watches(self) -> bool:
        """Whether anything goes by the held-out loss."""
        return self.keep == "best" or self.patience is not None

    @model_validator(mode="after")
    def _watched_is_measured(self) -> TrainSettings:
        if self.watches and self.validate_every is None:
            raise ConfigError(
                "train.keep: best and train.patience go by held-out losses, of which there is one"
                " alone, at the end",
                where="train.validate_every",
                do="set how many steps lie between two",
            )
        if self.watches and self.watch == "raw_validation_loss" and not self.validate_raw:
            raise ConfigError(
                "train.watch names a loss that is not measured",
                where="train.watch",
                do="set train.validate_raw: true",
            )
        return self

    @property
    def shards(self) -> bool:
        """Whether the model is spread over processes; one alone has all of it in any case."""
        return self.sharding == "full" and self.num_processes > 1

    @model_validator(mode="after")
    def _batches_are_shared(self) -> TrainSettings:
        for number, phase in enumerate(self.phases):
            where = f"train.phases.{number}.batch_size, train.num_processes"
            if phase.batch_size < self.num_processes:
                raise ConfigError(
                    f"a batch of {phase.batch_size} cannot be shared by {self.num_processes}"
                    " processes",
                    where=where,
                    do="raise batch_size or lower train.num_processes",
                )
            if self.shards and phase.batch_size % self.num_processes:
                raise ConfigError(
                    "the processes of a sharded model need equal shares of a batch, and"
                    f" {self.num_processes} do not divide {phase.batch_size}",
                    where=where,
                    do=(
                        f"make batch_size a multiple of {self.num_processes}, or train.sharding"
                        " none"
                    ),
                )
        return self

    @model_validator(mode="after")
    def _shards_go_together(self) -> TrainSettings:
        if not self.shards:
            return self
        if self.align_weight:
            raise ConfigError(
                "the projector of an alignment is not sharded",
                where="train.align_weight, train.sharding",
                do="set one of them only",
            )
        for number, phase in enumerate(self.phases):
            if phase.optimizer.state_bits == 8:
                raise ConfigError(
                    "bitsandbytes does not know sharded tensors, and a sharded model keeps its"
                    " averages in 32 bits",
                    where=f"train.phases.{number}.optimizer.state_bits, train.sharding",
                    do="set state_bits: 32, or train.sharding none",
                )
        return self

    @model_validator(mode="after")
    def _neighbours_stay_together(self) -> TrainSettings:
        for number, phase in enumerate(self.phases if self.contrastive_weight else ()):
            bounds = [
                phase.batch_size * rank // self.num_processes
                for rank in range(self.num_processes + 1)
            ]
            share = max(stop - start for start, stop in itertools.pairwise(bounds))
            if any(bound % 2 for bound in bounds[1:-1]):
                raise ConfigError(
                    f"train.contrastive_weight pairs neighbours: {self.num_processes} processes"
                    f" would cut pairs of a batch of {phase.batch_size}",
                    where=f"train.phases.{number}.batch_size, train.num_processes",
                    do=(
                        f"make batch_size a multiple of {2 * self.num_processes}, or"
                        " contrastive_weight 0"
                    ),
                )
            if (
                phase.micro_batch is not None
                and phase.micro_batch % 2
                and phase.micro_batch < share
            ):
                raise ConfigError(
                    "train.contrastive_weight pairs neighbours: a micro-batch of"
                    f" {phase.micro_batch} would cut pairs",
                    where=f"train.phases.{number}.micro_batch",
                    do="make micro_batch even, or contrastive_weight 0",
                )
        return self

    @property
    def aligned_block(self) -> int:
        """`align_block`, or its default."""
        return self.model.num_blocks // 3 if self.align_block is None else self.align_block

    @model_validator(mode="after")
    def _aligned_block_exists(self) -> TrainSettings:
        if self.aligned_block >= self.model.num_blocks:
            raise ConfigError(
                f"the model has no block {self.align_block}",
                where="train.align_block",
                do=f"use 0 to {self.model.num_blocks - 1}",
            )
        return self

    @model_validator(mode="after")
    def _routes_exist(self) -> TrainSettings:
        for phase in self.phases:
            try:
                self.model.tread_route(phase.tread_route)
            except ConfigError as error:
                raise ValueError(f"phase {phase.name}: {error.what}") from error
        return self


class Pipeline(WithAutoencoder, captioning.Pipeline, curation.Pipeline, Protocol):
    """The part of a pipeline that this package reads."""

    @property
    def train(self) -> TrainSettings: ...
    @property
    def mixed(self) -> Mapping[str, Pipeline]: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


class JobSettings(Settings):
    """What a training process reads of its pipeline."""

    name: str = ""
    components: Components = Components()
    train: TrainSettings = TrainSettings()
    threads: values.Workers | None = runtime(None)

    @classmethod
    def of(cls, pipeline: Mapping[str, Any]) -> JobSettings:
        """From the whole pipeline as plain values, which were checked when it was read."""
        fields = cls.model_fields.keys() & pipeline.keys()
        return cls.model_validate({name: pipeline[name] for name in fields})
