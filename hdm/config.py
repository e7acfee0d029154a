"""What can be set: one frozen model a stage, each field with its unit and what a special value
means.

A field made with `runtime(...)` does not change the result (workers, devices, batches of data
stages): it stays out of digests. `hdm.pipelines` reads these from pipelines.yaml, the environment
and the command line.
"""

from __future__ import annotations

import codecs
import itertools
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hdm import values
from hdm.architecture import XUTConfig
from hdm.errors import ConfigError
from hdm.secrets import SecretReference
from hdm.values import Within

SourceKind = Literal["auto", "urls", "folder", "dataset", "tars", "scenes", "emoji"]
SCENES_VERSION = 2
"""Of the embedded data set: raised when the same settings give other pictures or captions."""
ITEM_FIELDS = ("given", "source", "licence", "width", "height")
"""Fields of a picture that a caption template may name."""


def runtime(default: Any, **constraints: Any) -> Any:
    """A field that does not change what comes out."""
    return Field(default, json_schema_extra={"runtime": True}, **constraints)


def later(default: Any, **constraints: Any) -> Any:
    """A field that came when outputs had been made without it: at its default it stays out of
    digests, and these stay as they were.
    """
    return Field(default, json_schema_extra={"later": True}, **constraints)


class Settings(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def result_fields(self) -> dict[str, Any]:
        """The fields that change the result, as plain JSON values, for a digest."""
        values = {}
        for name, info in type(self).model_fields.items():
            marks = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            value = getattr(self, name)
            if not marks.get("runtime") and not (marks.get("later") and value == info.default):
                values[name] = _plain(value)
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.result_fields()
    if isinstance(value, XUTConfig):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


class Components(Settings):
    """The models that a pipeline uses: hub names (`org/name` or `org/name@revision`) or local
    folders.
    """

    folder: str | None = None
    """A folder that `hdm bootstrap` wrote, holding all of them; "demo" is the one in the package.
    The others override it.
    """
    contrastive: str | None = None
    """open_clip model for CLIP similarity and embeddings (and captions, where it is a CoCa)."""
    contrastive_pretrained: str | None = None
    """open_clip's pretrained tag, for a model named by architecture."""
    autoencoder: str | None = None
    """diffusers autoencoder."""
    text_encoder: str | None = None
    """transformers language model whose last hidden state conditions the denoiser; its tokenizer
    with it.
    """
    captioner: str | None = None
    """transformers image-text-to-text model; None: captions come from the contrastive model (a
    CoCa).
    """
    aesthetic_head: str | None = None
    """safetensors or .pth of a LAION linear or MLP head for the contrastive model's embeddings."""
    aesthetic_head_for: str | None = None
    """The contrastive model that the head was trained for, as ViT-L-14/openai or as `contrastive`
    has it; has to be set for heads that are neither known by their sha256 (LAION's) nor in
    `folder`, since a head for another model may invert the order.
    """
    aesthetic_head_activation: Literal["none", "relu"] | None = None
    """What stands between the layers of an MLP head, which its file does not say; None: for linear
    heads and those that are known.
    """
    vision: str | None = None
    """transformers vision transformer (DINOv2, …) whose features `encode.features` caches."""


class ImageSettings(Settings):
    """How picture files become RGB, and what one of them may take: one that takes more is refused
    and counted.
    """

    matte: values.Colour = "#ffffff"
    """Colour that shows behind transparent pixels, as #rrggbb."""
    max_megapixels: values.Megapixels = 144.0
    """Pictures of so many million pixels or more are refused before decoding."""
    max_scans: Annotated[int, Within(1, 10_000)] = 100
    """JPEG files with more scans are refused. Progressive files of usual programs have about 10;
    each scan goes over all pixels.
    """
    max_frames: Annotated[int, Within(1, 10_000_000)] = 10_000
    """PNG, WebP, AVIF and HEIF files that announce more frames are refused: their readers look at
    each when they open a file.
    """
    max_memory_mb: Annotated[int, Within(256, 1_000_000)] = 4096
    """Memory of a process that decodes, of which its program takes about 100; the largest picture
    that is allowed needs 24 bytes a pixel."""
    max_seconds: Annotated[float, Within(1, 3600)] = 60.0
    """Seconds of computing for one picture, and ten times as many on the clock."""
    animated: Literal["first_frame", "reject"] = "first_frame"
    decode_mb: values.Megabytes = runtime(2048)
    """Memory for pictures that are being decoded or wait to be used; one that needs more is decoded
    while no other is.
    """


class ScenesSettings(Settings):
    """The embedded data set: pictures with known truth, made from a seed."""

    count: Annotated[int, Within(1, 10_000_000)] = 4000
    """Good pictures."""
    seed: values.Seed = 0
    faults: Annotated[float, Within(0, 0.5)] = 0.12
    """Planted bad items (corrupt, duplicate, blurred, mislabelled, …) as a share of `count`."""
    size_px: Annotated[int, Within(16, 2048)] = 64
    """Shorter side."""
    uncaptioned: values.Share = 0.1
    """Share of good pictures served without a caption, for the captioner."""


class DownloadSettings(Settings):
    source: str = ""
    """A URL list (.parquet, .csv, .jsonl, .txt; also one at an http address), a folder of pictures,
    WebDataset tars (a glob), Parquet files of pictures, or a data set's name; for kind emoji the
    address of Noto Emoji's PNG files, or a folder of them. An address with a user or a query is a
    secret, and given by reference: env:NAME, file:PATH, block:NAME.
    """
    token: SecretReference | None = runtime(None)
    """Of the Hugging Face hub, for a data set that is not public; by reference as well. None: the
    one that the hub's own tools are logged in with."""
    kind: SourceKind = "auto"
    """How to read `source`; auto decides by what it is."""
    scenes: ScenesSettings = ScenesSettings()
    """Used where kind is scenes."""
    url_column: str = "url"
    caption_column: str | None = None
    """Column (lists, data sets) or field (metadata files, JSON) that holds the captions; None: of
    each row the first of `caption`, `captions`, `text` and `prompt` (in any case) with a
    caption.
    """
    text_lines: Literal["captions", "one"] = "captions"
    """captions: each line of a text beside a picture is a caption, unless empty lines show
    paragraphs of one text; one: the whole text is one."""
    class_captions: bool = False
    """Pictures without captions are captioned with the name of their class: their folder (kohya's
    `10_name` without the number), the `.cls` member of a WebDataset, the `label` of a data set."""
    encoding: str | None = None
    """Of texts that are not Unicode, as cp1251 or shift_jis; None: Windows-1252 where it
    gives plain western text, counted as guessed; else they are lost."""
    max_lost_captions: values.CountOrNone = runtime(0)
    """The stage stops when more captions, or lines and files with captions, are lost."""
    follow_links: bool = True
    """Follow symbolic links in a folder, each folder once. In archives and data sets, links that
    lead out are always refused."""
    image_column: str = "image"
    """Column of a data set that holds the picture."""
    split: str = "train"
    """Split of a data set."""
    metadata: str | None = None
    """Metadata file of a folder (.jsonl, .json, .csv, .tsv, .parquet), relative to it; None: the
    files called `metadata` in every folder."""
    max_items: values.Count | None = None
    """Take only the first so many; None: all."""
    expected_items: values.Count | None = runtime(None)
    """How many the source holds, for `hdm plan` to count with before it is read; nothing else
    asks.
    """
    shard_items: Annotated[int, Within(1, 1_000_000)] = 1000
    """Items a tar shard."""
    max_bytes: values.FileBytes = 50_000_000
    """A larger file is refused."""
    max_failed: values.Share = runtime(0.5)
    """The stage stops when a larger share of the items fails; with a larger value a rerun keeps
    what is there.
    """
    allow_loopback: bool = False
    """Let URLs lead to this machine. For the embedded demo only."""
    retries: values.Retries = 3
    """Further tries after 429, 5xx, a time-out or a reset."""
    timeout_sec: values.Seconds = runtime(30.0)
    """For one try."""
    concurrency: values.Workers = runtime(64)
    """Requests under way at once."""

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                codecs.lookup(encoding)
            except LookupError as error:
                raise ValueError("Python knows no such encoding; examples: cp1251, gbk") from error
        return encoding


class TopFraction(Settings):
    by: Literal["aesthetic", "clip_similarity", "sharpness"] = "aesthetic"
    keep: values.PositiveShare = 1.0


class FilterSettings(Settings):
    """Thresholds; None switches a check off."""

    min_side_px: values.MinimumSide | None = 32
    max_aspect: values.Aspect | None = 3.0
    """Longer side over shorter side."""
    min_sharpness: values.Share | None = None
    """Steepness of the steepest edges, shorter side brought to 256 px where larger: 1 is a step
    from one pixel to the next, 0.25 edges blurred over about a pixel, 0 one colour."""
    max_noise: values.Grey | None = None
    """Standard deviation of pixel noise, in grey levels (Immerkær's estimate in the smoothest
    tenth).
    """
    duplicate_distance: values.Share | None = 0.16
    """Bits of a 64-bit perceptual hash that may differ, as a share of all, for two pictures to be
    compared; 0: exact copies alone.
    """
    duplicate_difference: values.Grey | None = None
    """null, for photographs: what is compared are gradients, so that a crop, border, small rotation
    or watermark, brightness, contrast and saturation may differ. A number, for drawings: the grey
    levels by which copies may differ at any place; 10 keeps emoji apart.
    """
    duplicate_mirrored: bool = False
    """A picture and its mirror image are one. Not where captions speak of left and right."""
    duplicate_meaning: values.Cosine | None = None
    """Cosine of the contrastive model's embeddings from which pictures show the same, however they
    look; null: not looked at.
    """
    min_aesthetic: values.Score | None = None
    min_clip_similarity: values.Cosine | None = None
    """Cosine of picture and given caption. Pictures without a caption pass."""
    top_fraction: TopFraction | None = None
    """After the thresholds, keep only the best so many."""
    limits: dict[str, values.Score] = later({})
    """Limits of criteria that other code registers (hdm/curation/criteria.py), by the criterion's
    name.
    """
    validation: values.Rate = 0.02
    held_out: values.Rate = 0.05
    """Shares of the kept pictures kept out of training, by a hash of content, copies together. A
    picture keeps its split in this store.
    """
    batch_size: values.Batch = runtime(64)
    device: values.Device = runtime("auto")


class CaptionMaker(Settings):
    kind: Literal["given", "coca", "transformers", "template"] = "given"
    when: Literal["always", "missing"] = "always"
    """missing: only for pictures that have no caption from the makers before."""
    count: values.Few = 1
    """Captions for a picture; more than one are drawn, one is greedy."""
    template: str | None = None
    """For template: text with {given} and fields of the item, e.g. "an emoji of {given}"; `|`
    separates wordings.
    """
    prompt: str | None = None
    """For transformers: the instruction."""
    max_tokens: values.Tokens = 48
    temperature: values.Temperature = 1.0

    @property
    def wordings(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each wording of `template`, and the fields in its braces."""
        parts = [part.strip() for part in (self.template or "").split("|")]
        return [(wording, _fields_in(wording)) for wording in parts if wording]

    @model_validator(mode="after")
    def _template_can_be_filled(self) -> CaptionMaker:
        if not self.wordings and self.kind == "template":
            raise ValueError(
                'a maker of kind template needs a template, for example "a photo of {given}"'
            )
        return self


def _fields_in(wording: str) -> tuple[str, ...]:
    """The names in braces; `{given.x}` and `{given[0]}` are refused like unknown names.

    Raises:
        ValueError: braces that do not match, a field that pictures do not have, or one with a
            format.
    """
    try:
        parts = [part for part in Formatter().parse(wording) if part[1] is not None]
    except ValueError as error:
        raise ValueError(
            f"caption template {wording!r}: {error}; write {{{{ and }}}} for literal braces"
        ) from error
    for _, name, form, conversion in parts:
        if name not in ITEM_FIELDS:
            raise ValueError(
                f"caption template {wording!r}: there is no field {{{name}}}; use {', '.join(ITEM_FIELDS)}"
            )
        if form or conversion:
            raise ValueError(f"caption template {wording!r}: write {{{name}}} without a format")
    return tuple(str(name) for _, name, _, _ in parts)


class CaptionSettings(Settings):
    makers: tuple[CaptionMaker, ...] = (CaptionMaker(),)
    """In order. Pictures that none of them has a caption for are counted and not trained on."""
    max_chars: values.Characters = 2000
    batch_size: values.Batch = runtime(64)
    device: values.Device = runtime("auto")


class EncodeSettings(Settings):
    """Latents are made for every resolution that a training phase names."""

    dtype: Literal["float16", "bfloat16"] = "float16"
    shard_mb: values.Megabytes = 256
    """Upper size of a latent shard."""
    max_aspect: values.Aspect = 2.0
    """Pictures longer than this are cut to it about their middle."""
    max_tokens: values.Tokens = 256
    """Captions are cut to so many tokens."""
    text_embeddings: bool = False
    """Cache the text encoder's output (cut to its real length) instead of running it in
    training.
    """
    text_dtype: Literal["float16", "int8"] = "float16"
    """Of cached text embeddings; int8: 8 bits with a scale for each token, half the bytes. The
    stage prints what the rounding costs.
    """
    features: bool = False
    """Cache patch features of `components.vision`, for `train.align_weight`."""
    features_px: Annotated[int, Within(14, 16_384)] = 224
    """Shorter side of the pictures that they are made of, a multiple of the vision model's patch:
    224 px at 14 px a patch are 256 features a square, 0.4 MB in 16 bits where they are 768 wide.
    One output serves all resolutions.
    """
    from_larger: tuple[values.Side, ...] = ()
    """Resolutions whose latents are not encoded but downscaled from those of the next larger one.
    The stage prints how far they are from encoded ones; it is near only where the autoencoder was
    trained for it.
    """
    tile_px: Annotated[int, Within(32, 65_536)] | None = None
    """Larger pictures are encoded in overlapping tiles of this side: for those that do not fit in
    memory. None: whole.
    """
    crop_pictures: values.CountOrNone = runtime(4)
    """Pictures of a resolution on which it is measured how near a crop of their latents is to
    encoding the crop.
    """
    batch_size: values.Batch = runtime(32)
    device: values.Devices = runtime("auto")
    """For latents also several, which share the shards: auto takes every accelerator, and
    `cuda:0,cuda:2` those two.
    """


class Optimizer(Settings):
    kind: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the blocks' matrices, AdamW for everything else."""
    learning_rate: values.LearningRate = 3e-4
    """AdamW's rate; with `per_fan_in` the base rate that each tensor divides by its fan-in."""
    muon_learning_rate: values.LearningRate = 0.02
    per_fan_in: bool = False
    state_bits: Literal[32, 8] = later(32)
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


class VaeSettings(Settings):
    """How an autoencoder is fine-tuned, or trained from scratch."""

    scratch: bool = False
    """Start from a new small AutoencoderKL instead of `components.autoencoder`."""
    channels: values.Few = 8
    """Of a latent, from scratch."""
    num_images: values.Count = 24_000
    """Images seen, repetitions counted."""
    batch_size: values.Batch = 8
    size_px: Annotated[int, Within(16, 16_384)] = 64
    """Side of the square crops; pictures are brought to it by their shorter side."""
    reconstruction: Literal["l1", "l2"] = "l1"
    edge_weight: values.Weight = 0.25
    """Of the same difference between neighbouring pixels' differences."""
    perceptual_weight: values.Weight = 0.0
    """Of LPIPS with VGG16 (arXiv 1801.03924); needs torchmetrics and VGG16's weights in torch's
    cache. 0: without.
    """
    kl_weight: values.Weight = 1e-4
    """Of the posterior's divergence from a standard normal one, a latent value; where the
    autoencoder has a posterior.
    """
    equivariance_weight: values.Weight = 1.0
    """Of what a scaled and turned latent decodes to, against the picture scaled and turned (EQ-VAE,
    arXiv 2502.09509). 0: plain.
    """
    scales: tuple[values.PositiveShare, values.PositiveShare] = (0.25, 1.0)
    """From which to below which factor latents are scaled."""
    optimizer: Optimizer = Optimizer(learning_rate=1e-4, weight_decay=0.0, warmup_images=800)
    """Here muon takes convolutions too."""
    ema_decay: values.Rate = 0.0
    """Of the weights' moving average, which is then what is kept; 0: the last weights."""
    seed: values.Seed = 0
    num_measured: values.Count = 256
    """Pictures kept out of training that quality is measured on, before and after."""
    checkpoint_sec: values.Seconds = runtime(300.0)
    """Seconds between checkpoints."""
    device: values.Device = runtime("auto")

    @field_validator("scales")
    @classmethod
    def _rising(cls, scales: tuple[float, float]) -> tuple[float, float]:
        if not scales[0] < scales[1]:
            raise ValueError("the first must be less than the second")
        return scales


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
    resume_from: str | None = later(None, pattern=r"^[0-9a-f]+@[0-9]+$")
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
    training wrote; a diffusers folder.
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


class TrainSettings(Settings):
    model: XUTConfig = XUTConfig()
    phases: tuple[Phase, ...] = Field((), max_length=16)
    start: Start | None = later(None)
    """Weights to start from, as {weights: models/imported} or {pipeline: NAME, phase: 256px}; None:
    new ones from the seed.
    """
    mix: tuple[MixedIn, ...] = later(())
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
    tag_drop: values.Rate = later(0.0)
    group_drop: values.Rate = later(0.0)
    """Shares of the tags and of the groups of tags that are left out, anew at every image seen, of captions written
    `kept tags ||| group %% group`, tags split by `$$`; the published recipe has 0.25 and 0.3. The text encoder has to run in training."""
    tag_shuffle: bool = later(False)
    """Put their groups, and the tags in each, into another order every time."""
    min_snr_gamma: values.PositiveWeight | None = later(None)
    """Weigh losses by time as min-SNR-γ does (arXiv 2303.09556: 5), brought to velocities and to a
    mean of 1; None: all the same.
    """
    dropout: values.Rate = later(0.0)
    """Of what attention and feed-forward add to the tokens."""
    align_weight: values.Weight = later(0.0)
    """Of the pull of one block's image tokens towards `encode.features`, by cosine (REPA, arXiv
    2410.06940: 0.5). 0: without.
    """
    align_block: values.Blocks | None = later(None)
    """Whose output is pulled, counted from 0 in the order in which blocks run; None: the one a
    third in.
    """
    ema_decay: values.Rate = 0.999
    """Of the weights' moving average, per step, reached after a ramp."""
    ema_lengths: tuple[values.EmaLength, ...] = later(())
    """Of power-function averages kept beside it (EDM2, arXiv 2312.02696), as shares of the phase;
    from two of them, say [0.05, 0.1], `hdm ema` makes one of any length afterwards. Each costs the
    memory of the weights.
    """
    ema_snapshots: values.Few = later(8)
    """How often in a phase these are written down, evenly; each costs the room of the weights."""
    crop: Literal["shifted", "centre"] = "shifted"
    mirror: bool = later(False)
    """Exchange left and right in half of the images whose captions speak neither of sides nor of
    writing (English words alone are known). It is the latent that is mirrored, which is not the
    mirrored picture's latent: with the demo's autoencoder the two differ by 0.79 of their norm, and
    it decodes to 21 dB instead of 33. Only for an autoencoder that commutes with mirroring.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products (autocast); weights stay float32."""
    validate_every: values.Count | None = None
    """Steps between held-out losses; None: at the end only."""
    validate_raw: bool = later(False)
    """Tell the held-out loss of the weights as they are too, not of their average alone."""
    watch: Literal["validation_loss", "raw_validation_loss"] = later("validation_loss")
    """The held-out loss that `keep` and `patience` go by."""
    keep: Literal["last", "best"] = later("last")
    """Which weights come out of a phase: those at its end, or those whose held-out loss was
    lowest.
    """
    patience: values.Count | None = later(None)
    """Held-out losses in a row, none the lowest yet, after which a phase ends before its last step;
    None: none end it.
    """
    prompts: tuple[str, ...] = ()
    """Generated at each phase's end at fixed seeds; empty: captions of held-out pictures."""
    generate_every: values.Count | None = later(None)
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
    """Of all devices together, for the cost in the logs; None: no cost is told."""
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
                "train.keep: best and train.patience go by held-out losses, of which there is one alone, at the end",
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
            if phase.batch_size < self.num_processes:
                raise ConfigError(
                    f"a batch of {phase.batch_size} cannot be shared by {self.num_processes} processes",
                    where=f"train.phases.{number}.batch_size, train.num_processes",
                    do="raise batch_size or lower train.num_processes",
                )
        return self

    @model_validator(mode="after")
    def _shards_go_together(self) -> TrainSettings:
        for number, phase in enumerate(self.phases if self.shards else ()):
            if phase.batch_size % self.num_processes:
                raise ConfigError(
                    f"the processes of a sharded model need equal shares of a batch, and {self.num_processes} do not divide "
                    f"{phase.batch_size}",
                    where=f"train.phases.{number}.batch_size, train.num_processes",
                    do=f"make batch_size a multiple of {self.num_processes}, or train.sharding none",
                )
            if self.align_weight:
                raise ConfigError(
                    "the projector of an alignment is not sharded",
                    where="train.align_weight, train.sharding",
                    do="set one of them only",
                )
            if phase.optimizer.state_bits == 8:
                raise ConfigError(
                    "bitsandbytes does not know sharded tensors, and a sharded model keeps its averages in 32 bits",
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
                    f"train.contrastive_weight pairs neighbours: {self.num_processes} processes would cut pairs of a batch of "
                    f"{phase.batch_size}",
                    where=f"train.phases.{number}.batch_size, train.num_processes",
                    do=f"make batch_size a multiple of {2 * self.num_processes}, or contrastive_weight 0",
                )
            if (
                phase.micro_batch is not None
                and phase.micro_batch % 2
                and phase.micro_batch < share
            ):
                raise ConfigError(
                    f"train.contrastive_weight pairs neighbours: a micro-batch of {phase.micro_batch} would cut pairs",
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


class EvaluateSettings(Settings):
    prompts: Literal["held_out", "scenes", "emoji"] | str = "held_out"
    """held_out: captions of held-out pictures; scenes: one- and two-object prompts with known
    truth; emoji: 32 combinations and 32 names that no training picture of kind emoji bears, with a
    page to choose from four names on; else a text or JSONL file.
    """
    num_images: values.Count = 256
    steps: values.Few = 16
    guidance: values.Guidance = 3.0
    solver: Literal["euler", "heun"] = "euler"
    size: values.Size | None = None
    """WIDTHxHEIGHT; None: the square of the last phase's resolution."""
    seed: values.Seed = 0
    batch_size: values.Batch = runtime(64)
    device: values.Device = runtime("auto")


class Pipeline(Settings):
    """One entry of pipelines.yaml."""

    name: str = ""
    description: str = ""
    components: Components = Components()
    images: ImageSettings = ImageSettings()
    download: DownloadSettings = DownloadSettings()
    filter: FilterSettings = FilterSettings()
    caption: CaptionSettings = CaptionSettings()
    vae: VaeSettings | None = None
    """Fine-tune the autoencoder on the kept training pictures before encoding; None: it is used as
    it is.
    """
    encode: EncodeSettings = EncodeSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    threads: values.Workers | None = runtime(None)
    """CPU threads: of torch in a training, which keeps the number that it began with; in other
    stages, how many work at once, on which no result depends. None: one a core, or
    OMP_NUM_THREADS.
    """
    mixed: dict[str, Pipeline] = runtime({})
    """The pipelines that `train.mix` and `train.start` name, as `load_pipeline` read them. Not for
    writing.
    """

    @model_validator(mode="after")
    def _drawn_captions_are_encoded_live(self) -> Pipeline:
        if self.train.redraws_tags and self.encode.text_embeddings:
            raise ConfigError(
                "captions whose tags are drawn anew have no text embeddings in a cache",
                where="encode.text_embeddings",
                do="set it to false, or tag_drop and group_drop to 0 and tag_shuffle to false",
            )
        return self

    @model_validator(mode="after")
    def _aligned_to_something(self) -> Pipeline:
        if self.train.align_weight and not self.encode.features:
            raise ConfigError(
                "train.align_weight pulls towards features of a vision model, which are not made",
                where="encode.features",
                do="set encode.features: true and components.vision, or train.align_weight: 0",
            )
        return self

    @property
    def encoded_from(self) -> dict[int, int | None]:
        """Resolution → the larger one whose latents it is downscaled from, or None where pictures
        are encoded; those first.
        """
        resolutions = sorted({phase.resolution for phase in self.train.phases})
        encoded = [size for size in resolutions if size not in self.encode.from_larger]
        smaller = (size for size in resolutions if size in self.encode.from_larger)
        return {
            **dict.fromkeys(encoded),
            **{size: min(larger for larger in encoded if larger > size) for size in smaller},
        }

    @model_validator(mode="after")
    def _larger_is_encoded(self) -> Pipeline:
        resolutions = {phase.resolution for phase in self.train.phases}
        for size in self.encode.from_larger:
            if size not in resolutions:
                raise ConfigError(
                    f"no phase has resolution {size}",
                    where="encode.from_larger",
                    do="name resolutions of train.phases",
                )
            if not any(
                larger > size and larger not in self.encode.from_larger for larger in resolutions
            ):
                raise ConfigError(
                    f"no larger resolution than {size} is encoded",
                    where="encode.from_larger",
                    do="leave it out",
                )
        return self
