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
from hdm.models.settings import AdapterSettings, Components, WithAutoencoder
from hdm.settings import Settings, runtime, since
from hdm.values import Within


class Optimizer(Settings):
    kind: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the blocks' matrices, AdamW for all other parameters."""
    learning_rate: values.LearningRate = 3e-4
    """AdamW's rate; with `per_fan_in`, the base rate, divided by each tensor's fan-in."""
    muon_learning_rate: values.LearningRate = 0.02
    """Muon's rate."""
    per_fan_in: bool = False
    # `since` keeps a later setting out of digests until it is set, so that earlier outputs keep
    # theirs.
    state_bits: Literal[32, 8] = since("0.1.0", 32)
    """Precision of AdamW's two moments; 8 (needs the package bitsandbytes) takes a quarter of the
    memory.
    """
    betas: tuple[values.Rate, values.Rate] = (0.9, 0.99)
    weight_decay: Annotated[float, Within(0, 100)] = 0.01
    clip_norm: values.PositiveWeight = 1.0
    warmup_images: values.CountOrNone = 0
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    """wsd: constant, then a linear decay over the last fifth."""
    final_rate: values.Share = 0.01
    """The final rate, as a share of the full rate."""


class Phase(Settings):
    """One phase, at one resolution."""

    resolution: values.Side
    """Shorter side of the pictures, and side of the square crop, in pixels."""
    num_images: values.Count
    """Number of images seen (the training clock), counting repetitions."""
    batch_size: values.Batch
    """Images per optimizer step, over all processes."""
    tread_rate: values.Rate = 0.5
    """Share of the image tokens that skip the route (TREAD, arXiv 2501.04765)."""
    tread_schedule: tuple[tuple[values.Share, values.Rate], ...] | None = None
    """Rates instead of the one above, as [share of the phase at which it begins, rate], the first
    at 0: [[0, 0.75], [0.9, 0]] trains the last tenth of the phase on all tokens (SPRINT, arXiv
    2510.21986). None: `tread_rate` throughout.
    """
    tread_route: tuple[values.Blocks, values.Blocks] | None = None
    """The blocks that dropped tokens skip, [start, end) in execution order; None: the whole U, as
    published.
    """
    max_tokens: values.Tokens | None = None
    """Maximum number of text tokens per caption; None: as encoded."""
    timestep_shift: values.Shift = 1.0
    optimizer: Optimizer = Optimizer()
    adapter: AdapterSettings | None = since("0.3.0", None)
    """Train an adapter beside the model of the phase before or of `train.start`, which stays as it
    is, as {method: lora, rank: 16}; for the last phase. None: train the whole model.
    """
    resume_from: str | None = since("0.1.0", None, pattern=r"^[0-9a-f]+@[0-9]+$")
    """DIGEST@STEP: start from a checkpoint of an unfinished training of this phase with other
    settings, in this store; data continues after the images that it has seen. None: start from the
    previous phase.
    """
    resume_allow: tuple[str, ...] = runtime(())
    """Names of settings that may differ from the checkpoint's, such as
    train.phases.0.optimizer.learning_rate; any other difference is refused.
    """
    # These two change the result by rounding only, so digests leave them out.
    micro_batch: values.Batch | None = runtime(None)
    """Images per forward pass on one device; None: the device's whole share."""
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

    # Digests cover the other pipeline's outputs, so its name may change.
    pipeline: str = runtime(...)
    """Entry of pipelines.yaml with the latents and captions; `hdm run NAME --until encode` makes
    them.
    """
    weight: values.PositiveWeight = 1.0
    """Number of its pictures seen per picture of this pipeline's own."""


class Start(Settings):
    """The source of the first phase's weights. Digests include the hash of the weights, not these
    names.
    """

    weights: str | None = runtime(None)
    """A .safetensors file or its folder, as `hdm weights import` writes them; an output of
    training; a diffusers folder; or a Lightning checkpoint.
    """
    pipeline: str | None = runtime(None)
    """Entry of pipelines.yaml whose averaged weights are used; `hdm run NAME --until train` makes
    them.
    """
    phase: str | None = runtime(None, pattern=r"^[1-9][0-9]*px$")
    """That pipeline's phase, such as 256px; None: its last."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Start:
        # pydantic lets a ConfigError pass with its own place; it would report a ValueError for all
        # of `train`.
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
    """Read kinds other than XUT with their own class; pydantic names an XUT's wrong field."""
    if not isinstance(value, Mapping) or "kind" not in value:
        return value if isinstance(value, XUTConfig) else read_xut(value)
    return XUTConfig.from_dict(value)


class TrainSettings(Settings):
    model: Annotated[XUTConfig, WrapValidator(_read_model), PlainSerializer(XUTConfig.to_dict)] = (
        XUTConfig()
    )
    """An XUT, or another denoiser if `kind` names one that an installed package adds."""
    phases: tuple[Phase, ...] = Field((), max_length=16)
    start: Start | None = since("0.2.0", None)
    """Initial weights, as {weights: models/imported} or {pipeline: NAME, phase: 256px}; None:
    random ones from the seed.
    """
    mix: tuple[MixedIn, ...] = since("0.1.0", ())
    """Other pipelines whose pictures are also trained on, as [{pipeline: NAME, weight: 0.5}]; this
    pipeline's own have weight 1. Held-out losses, prompts and evaluation use its own pictures only.
    """
    seed: values.Seed = 0
    caption_dropout: values.Rate = 0.1
    """Share of images trained with the empty caption, for guidance."""
    contrastive_weight: values.Rate = 0.0
    """Weight of the distance to a neighbour's velocity, which is subtracted from the loss
    (contrastive flow matching: 0.05); 0: plain flow matching.
    """
    tag_drop: values.Rate = since("0.1.0", 0.0)
    group_drop: values.Rate = since("0.1.0", 0.0)
    """Shares of tags and of groups of tags that are dropped, sampled anew each time an image is
    seen, from captions of the form `kept tags ||| group %% group`, with tags separated by `$$`; the
    published recipe uses 0.25 and 0.3. The text encoder must run in training.
    """
    tag_shuffle: bool = since("0.1.0", False)
    """Shuffle groups, and the tags in each, every time."""
    min_snr_gamma: values.PositiveWeight | None = since("0.1.0", None)
    """Weight losses by timestep as min-SNR-γ does (arXiv 2303.09556: 5), adapted to velocities and
    normalised to mean 1; None: equal weights.
    """
    dropout: values.Rate = since("0.1.0", 0.0)
    """Dropout rate on the updates of attention and feed-forward."""
    align_weight: values.Weight = since("0.1.0", 0.0)
    """Weight of the alignment of one block's image tokens with `encode.features`, by cosine
    similarity (REPA, arXiv 2410.06940: 0.5). 0: none.
    """
    align_block: values.Blocks | None = since("0.1.0", None)
    """The block whose output is aligned, counted from 0 in execution order; None: the one a third
    of the way in.
    """
    ema_decay: values.Rate = 0.999
    """Decay of the weights' moving average per step, reached after a ramp."""
    ema_lengths: tuple[values.EmaLength, ...] = since("0.1.0", ())
    """Lengths of additional power-function averages (EDM2, arXiv 2312.02696), as shares of the
    phase; from two, such as [0.05, 0.1], `hdm ema` makes an average of any length afterwards. Each
    takes the memory of the weights.
    """
    ema_snapshots: values.Few = since("0.1.0", 8)
    """Number of times per phase that these are saved, at regular intervals; each takes the disk
    space of the weights.
    """
    crop: Literal["shifted", "centre"] = "shifted"
    mirror: bool = since("0.1.0", False)
    """Exchange left and right in half of the images whose captions mention neither sides nor
    writing (only English words are recognised). This mirrors the latent, which differs from the
    mirrored picture's latent: with the demo's autoencoder by 0.79 of the norm, and it decodes to 21
    dB instead of 33. Use it only with an autoencoder that commutes with mirroring.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products (autocast); weights stay float32."""
    validate_every: values.Count | None = None
    """Steps between held-out losses; None: at the end only."""
    validate_raw: bool = since("0.1.0", False)
    """Also measure the held-out loss of the raw weights, not only of their average."""
    watch: Literal["validation_loss", "raw_validation_loss"] = since("0.1.0", "validation_loss")
    """The held-out loss that `keep` and `patience` use."""
    keep: Literal["last", "best"] = since("0.1.0", "last")
    """The weights that a phase returns: the last ones, or those with the lowest held-out loss."""
    patience: values.Count | None = since("0.1.0", None)
    """Number of consecutive held-out losses without a new minimum after which a phase ends early;
    None: never.
    """
    prompts: tuple[str, ...] = ()
    """Generated at each phase's end at fixed seeds; empty: captions of held-out pictures."""
    generate_every: values.Count | None = since("0.1.0", None)
    """Number of images seen between two generations of the prompts during a phase, with the
    averaged weights; None: only at the end.
    """
    # The settings from here on change how training runs and not its result, so they are in no
    # digest.
    checkpoint_sec: values.Seconds = runtime(600.0)
    """Seconds between checkpoints."""
    num_processes: values.Workers = runtime(1)
    sharding: Literal["none", "full"] = runtime("none")
    """full: weights, gradients, averages and optimizer state are sharded across the processes
    (FSDP2), for a model that does not fit on one device with them; slower, with the same files.
    none: every process holds everything (DDP).
    """
    device: values.Device = runtime("auto")
    peak_tflops: values.Tflops | None = runtime(None)
    """Peak speed of one device in 10¹² operations per second, for the utilisation in the logs;
    None: measured with a matrix product.
    """
    price_per_hour: values.Price | None = runtime(None)
    """Price of all devices together, for the cost in the logs; None: logs show no cost."""
    compile: bool = runtime(False)
    """Compile the blocks (torch.compile); the first steps take minutes."""

    @model_validator(mode="after")
    def _names_differ(self) -> TrainSettings:
        # Outputs are named after their phases.
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"two phases have the same resolution: {', '.join(names)}")
        return self

    @property
    def redraws_tags(self) -> bool:
        """Whether captions with tags are sampled anew each time an image is seen."""
        return self.tag_shuffle or self.tag_drop > 0 or self.group_drop > 0

    @property
    def watches(self) -> bool:
        """Whether anything depends on the held-out loss during a phase."""
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
        """Whether the model is sharded; a single process holds all of it in any case."""
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
    def _adapters_have_a_base(self) -> TrainSettings:
        for number, phase in enumerate(self.phases):
            where = f"train.phases.{number}.adapter"
            if phase.adapter is None:
                continue
            if number + 1 < len(self.phases):
                raise ConfigError(
                    "a phase follows on one that trains an adapter, which is no whole model",
                    where=where,
                    do="train the adapter in the last phase",
                )
            if number == 0 and self.start is None:
                raise ConfigError(
                    "an adapter needs a model that was trained",
                    where=where,
                    do="name one in train.start, as {pipeline: demo} or {weights: FILE}",
                )
            if self.shards:
                raise ConfigError(
                    "a model with an adapter is not sharded",
                    where=f"{where}, train.sharding",
                    do="set train.sharding none: the adapter's gradients and averages are small",
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
        # The loss compares a sample's velocity with that of its neighbour, 2i with 2i + 1, within a
        # micro-batch.
        for number, phase in enumerate(self.phases if self.contrastive_weight else ()):
            # The batch is cut between processes at these places, which must not part a pair.
            bounds = [
                phase.batch_size * rank // self.num_processes
                for rank in range(self.num_processes + 1)
            ]
            # A micro-batch that holds the whole share cuts nothing.
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

    def result_fields(self) -> dict[str, Any]:
        # A denoiser's `kind` is its class, none of the fields that other dataclasses consist of.
        return {**super().result_fields(), "model": self.model.to_dict()}


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
        # Other packages' settings are left out: a training process need not import what declares
        # them.
        fields = cls.model_fields.keys() & pipeline.keys()
        return cls.model_validate({name: pipeline[name] for name in fields})
