"""The plan of a pipeline: each output with its items, bytes, work, hours and memory, what is done
already, and whether the rest fits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from hdm.acquisition.sites import served_set
from hdm.architecture import XUTConfig
from hdm.config import Pipeline
from hdm.errors import ConfigError, InputError
from hdm.models.components import resolve
from hdm.models.vision import vision_sizes
from hdm.planning import counts, hardware, sizes, work
from hdm.planning.hardware import Card
from hdm.stage_work import SMALL_BYTES, Numbers, OutputStep, Size
from hdm.stages import OutputGraph, steps
from hdm.store import Output, Store
from hdm.training.measures import memory
from hdm.training.process.job import num_steps
from hdm.training.settings import Phase
from hdm.training.state.checkpoint import KEEP

Sizes = TypeVar("Sizes")
RESERVED_BYTES = 1.5e9
"""Assumed: of a GPU's memory, what its driver takes and what lies between blocks."""


@dataclass(frozen=True)
class Row:
    """One output.

    Args:
        name: as `encode.256px`.
        items: pictures, captions or samples that go through.
        bytes: that it takes in the store.
        hours: of one device, whether done or not.
        processes: devices that share these hours.
        memory_bytes: peak on one device; None: batches shrink to what there is.
        micro_batch: samples of a forward pass, in training.
        done: it is in the store.
    """

    name: str
    items: int
    bytes: int
    hours: float
    processes: int = 1
    memory_bytes: int | None = None
    micro_batch: int | None = None
    done: bool = False


@dataclass(frozen=True)
class Measured:
    """What training steps took here: seconds of an optimizer step, and the most memory (bytes)."""

    step_sec: float
    memory_bytes: int


@dataclass(frozen=True)
class Question:
    """What is asked of a pipeline.

    Args:
        pipeline: resolved.
        store: where outputs lie.
        card: the device.
        num_gpus: number of cards that training and the encoding of latents use.
        live_encoders: the autoencoder runs in training, for every sample, and no latents are kept,
            as in the published run.
        measured: phase name → what its steps took on this machine.
    """

    pipeline: Pipeline
    store: Store
    card: Card
    num_gpus: int = 1
    live_encoders: bool = False
    measured: Mapping[str, Measured] | None = None


@dataclass(frozen=True)
class Plan:
    """Rows in order, what was assumed, and what does not fit (empty: all does)."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def left(self) -> list[Row]:
        """What is not done."""
        return [row for row in self.rows if not row.done]


def make_plan(question: Question) -> Plan:
    """Count everything.

    Raises:
        ConfigError: it is not known how many pictures there are.
    """
    return _Planner(question).plan()


def with_largest_micro_batches(question: Question) -> Pipeline:
    """The pipeline with the largest micro-batch in each phase that fits, which changes no result
    beyond rounding.
    """
    phases = _Planner(question).largest_micro_batches()
    return question.pipeline.model_copy(
        update={"train": question.pipeline.train.model_copy(update={"phases": phases})}
    )


class _Planner:
    def __init__(self, question: Question) -> None:
        self.asked = question
        self.pipeline = question.pipeline
        # On the number of cards asked about, whatever the settings say.
        train = self.pipeline.train.model_copy(update={"num_processes": question.num_gpus})
        self.train = train
        self.notes: list[str] = []

    @cached_property
    def done(self) -> dict[str, Output]:
        return _done(self.pipeline, self.asked.store)

    def plan(self) -> Plan:
        rows = [self._row(step) for step in steps(self.pipeline) if not self._skipped(step)]
        return Plan(tuple(rows), tuple(self._assumptions()), tuple(self._problems(rows)))

    def _skipped(self, step: OutputStep[Pipeline]) -> bool:
        return self.asked.live_encoders and step.stage == "encode" and step.name.endswith("px")

    def _row(self, step: OutputStep[Pipeline]) -> Row:
        ready = self.done.get(step.name)
        row = self._training(step.name) if step.stage == "train" else self._data(step)
        return (
            row
            if ready is None
            else replace(row, bytes=sum(file.bytes for file in ready.files), done=True)
        )

    def _data(self, step: OutputStep[Pipeline]) -> Row:
        name = step.name
        size = self._own_size(name) if step.size is None else step.size(self.pipeline, self.numbers)
        seconds = 0.0
        if size.flops is None:
            self.notes.append(f"the work of {name} is not counted")
        elif size.flops:
            seconds = self.asked.card.seconds(size.items * size.flops, size.tokens)
        num_bytes = round(size.items * size.bytes)
        return Row(name, size.items, num_bytes, seconds / 3600, self._sharing(name))

    def _sharing(self, name: str) -> int:
        """Devices that share the work of a data stage: latents are encoded on all at once."""
        wanted = self.pipeline.encode.device
        encoded = [size for size, larger in self.pipeline.encoded_from.items() if larger is None]
        if name not in {f"encode.{size}px" for size in encoded}:
            return 1
        if wanted in ("auto", "cuda"):
            return self.asked.num_gpus
        return min(self.asked.num_gpus, len(set(wanted.split(","))))

    def _own_size(self, name: str) -> Size:
        """The size of an output whose step does not state it."""
        # As functions: each one notes what it cannot count, but only if its output is planned.
        counted: dict[str, Callable[[], Size]] = {
            "download": lambda: Size(self.items, self._picture_bytes() + sizes.TAR_BYTES),
            "filter.measures": lambda: Size(self.items, sizes.MEASURE_BYTES),
            "filter.contrastive": self._embeddings,
            "filter.aesthetic": lambda: Size(self.items, SMALL_BYTES),
            "filter": lambda: Size(self.items, sizes.SCORE_BYTES),
            "caption": lambda: Size(self.captions, sizes.CAPTION_BYTES),
            "encode.tokens": lambda: Size(
                self.captions, sizes.TOKEN_BYTES * self.pipeline.encode.max_tokens + SMALL_BYTES
            ),
            "encode.text": self._text,
            "encode.features": lambda: Size(self.kept, self._features()),
            "evaluate.images": self._pictures,
        }
        if name in counted:
            return counted[name]()
        if name.startswith("encode."):
            return self._latents(int(name.removeprefix("encode.").removesuffix("px")))
        self.notes.append(f"what {name} takes is not counted")
        return Size(self.kept)

    def _picture_bytes(self) -> float:
        served = served_set(self.pipeline)
        return served.picture_bytes(self.pipeline) if served else sizes.PICTURE_BYTES

    def _embeddings(self) -> Size:
        towers = self._sizes("contrastive", counts.towers)
        if towers is None:
            return Size(self.items, SMALL_BYTES)
        picture, text = towers
        # Captions are embedded whether or not a limit reads their similarity.
        both = picture.flops() + text.flops()
        return Size(self.items, SMALL_BYTES + 4 * text.width, both, picture.tokens)

    def _text(self) -> Size:
        tokens = self.pipeline.encode.max_tokens
        each = sizes.text_bytes(tokens, self.train.model.text_width)
        flops = self.language.flops(tokens) if self.language else 0
        return Size(self.captions, each, flops, tokens)

    def _features(self) -> float:
        """Bytes of a picture's features."""
        vision = self._sizes("vision", vision_sizes)
        side = self.pipeline.encode.features_px
        self.notes.append(
            "the vision model's work is not counted; that of the projector in training, and its"
            " memory, only where measured"
        )
        return (
            2 * vision[0] * (side // vision[1]) * (round(side * sizes.ASPECT) // vision[1])
            if vision
            else 0.0
        )

    def _latents(self, resolution: int) -> Size:
        width = round(resolution * sizes.ASPECT)
        side = resolution // self.downscale
        long = width // self.downscale
        each = sizes.latent_row_bytes(self.train.model.channels, side, long)
        flops = self.encoder.flops(resolution, width) if self.encoder else 0
        share = self.pipeline.encode.shares.get(resolution, 1.0)
        return Size(round(share * self.kept), each, flops, side * long)

    def _pictures(self) -> Size:
        settings = self.pipeline.evaluate
        last = self.train.phases[-1]
        done = work.sampling(
            self.train.model, self._tokens(last), settings.steps, guided=settings.guidance != 1
        )
        return Size(settings.num_images, 3 * last.resolution**2, done.flops, done.tokens)

    def largest_micro_batches(self) -> tuple[Phase, ...]:
        """The phases with the largest micro-batch that fits; 1 where not even that does."""
        largest = []
        for phase in self.train.phases:
            # A micro-batch never exceeds a process's share of the global batch.
            share = -(-phase.batch_size // self.train.num_processes)
            most = min(share, self._memory(phase).largest_micro_batch(self.room))
            if self.train.contrastive_weight and most < share:
                most -= most % 2  # neighbours stay together
            largest.append(phase.model_copy(update={"micro_batch": max(1, most)}))
        return tuple(largest)

    def _live(self) -> tuple[counts.LanguageModel | None, counts.ImageEncoder | None]:
        """The models that run in training."""
        return (
            None if self.pipeline.encode.text_embeddings else self.language,
            self.encoder if self.asked.live_encoders else None,
        )

    def _memory(self, phase: Phase) -> memory.Memory:
        language, encoder = self._live()
        weights = (self.item * language.num_weights if language else 0) + (
            4 * encoder.num_weights if encoder else 0
        )
        return memory.training_memory(
            self.train, phase, self._tokens(phase), self.asked.card.is_cpu, weights
        )

    def _training(self, name: str) -> Row:
        phase = next(phase for phase in self.train.phases if f"train.{phase.name}" == name)
        peak = self._memory(phase)
        done = work.training(self.train.model, phase, self._tokens(phase), *self._live())
        samples = num_steps(phase) * phase.batch_size
        seconds = self.asked.card.seconds(samples * done.flops, done.tokens)
        total = peak.total
        if measured := (self.asked.measured or {}).get(phase.name):
            # Hours of one device: every process takes part in each step.
            seconds = num_steps(phase) * measured.step_sec * self.train.num_processes
            # One process alone measured, with all of the model.
            total = total if self.train.shards else measured.memory_bytes
        # Snapshots stay in the output, for lengths that are chosen after training.
        averages = len(self.train.ema_lengths) * self.train.ema_snapshots
        left = sizes.phase_bytes(memory.trained_parameters(self.train.model, phase), averages)
        return Row(
            name, samples, left, seconds / 3600, self.train.num_processes, total, peak.micro_batch
        )

    def _tokens(self, phase: Phase) -> tuple[int, int]:
        """Tokens of the image and of the text. Texts count as padded to their limit, which live
        training does only if one of them is that long.
        """
        side = phase.resolution // self.downscale // self.train.model.patch_size
        return side**2, phase.max_tokens or self.pipeline.encode.max_tokens

    @cached_property
    def room(self) -> float:
        """Bytes of one device."""
        card = self.asked.card
        return 1e9 * card.memory_gb - (0 if card.is_cpu else RESERVED_BYTES)

    @property
    def item(self) -> int:
        return 2 if self.train.precision == "bfloat16" and not self.asked.card.is_cpu else 4

    @cached_property
    def items(self) -> int:
        """The number of requested items: as downloaded, else as expected."""
        settings = self.pipeline.download
        ready = self.done.get("download")
        if ready is not None:
            return ready.counts["items"]
        served = served_set(self.pipeline)
        if served is not None:
            return served.count(self.pipeline)
        known = [
            count for count in (settings.max_items, settings.expected_items) if count is not None
        ]
        if not known:
            raise ConfigError(
                "nobody knows yet how many pictures there are", where="download.expected_items",
                do="say it: --set download.expected_items=1_000_000",
            )  # fmt: skip
        return min(known)

    @cached_property
    def kept(self) -> int:
        """By the filter; before it has run, all."""
        ready = self.done.get("filter")
        return ready.counts["kept"] if ready is not None else self.items

    @cached_property
    def captions(self) -> int:
        ready = self.done.get("caption")
        if ready is not None:
            return ready.counts["captions"]
        return self.kept * max(
            1, sum(maker.count for maker in self.pipeline.caption.makers if maker.when == "always")
        )

    @cached_property
    def numbers(self) -> Numbers:
        return Numbers(self.items, self.kept, self.captions, self.pipeline.evaluate.num_images)

    @cached_property
    def language(self) -> counts.LanguageModel | None:
        return self._sizes("text_encoder", counts.language_model)

    @cached_property
    def encoder(self) -> counts.ImageEncoder | None:
        return self._sizes("autoencoder", counts.image_encoder)

    @property
    def downscale(self) -> int:
        # 8 as in the published recipe, if the autoencoder's sizes are unknown.
        return self.encoder.downscale if self.encoder else 8

    def _sizes(self, component: str, find: Callable[[str], Sizes | None]) -> Sizes | None:
        """A component's sizes; None, with a note, where they are not known."""
        try:
            reference = getattr(resolve(self.pipeline.components), component)
            sizes = find(reference) if reference else None
        except InputError:
            sizes = None
        if sizes is None:
            self.notes.append(
                f"the work of {component} is not counted: its sizes are not known here"
            )
        return sizes

    def _assumptions(self) -> list[str]:
        card = self.asked.card
        assumptions = [
            f"{card.name}: {card.tflops:g} TFLOP/s, {card.memory_gb:.0f} GB ({card.source})"
        ]
        if self.asked.measured:
            assumptions.append("training: three steps of each phase, measured here")
        elif card.measured:
            assumptions.append(
                "measured, not assumed: a step on sequences of S tokens runs at"
                f" {card.peak_share:.3f} · S / (S + {card.half_tokens:.0f}) of the card's"
                " own matrix products"
            )
        elif not card.is_cpu:
            assumptions.append(
                f"two figures fitted to the four published phases: {hardware.FITTED}"
            )
        if "filter" not in self.done:
            assumptions.append("before the filter has run, every picture counts as kept")
        assumptions.append(
            f"assumed: {sizes.PICTURE_BYTES / 1e6:g} MB a picture, {sizes.ASPECT} times as long as"
            " short; texts padded to their limit"
        )
        if any(maker.kind in ("coca", "transformers") for maker in self.pipeline.caption.makers):
            assumptions.append("captions that a model makes are not counted")
        if self.train.shards:
            assumptions.append(
                "sharded: the time in which cards send each other weights is not counted, nor is"
                " memory measured"
            )
        if type(self.train.model) is not XUTConfig:
            assumptions.append(
                "the denoiser is no XUT: its work and activations are counted as an XUT's of the"
                " same sizes"
            )
        if self.train.compile:
            assumptions.append("memory as without compile, which takes less")
        # Several outputs may give the same note.
        return assumptions + list(dict.fromkeys(self.notes))

    def _problems(self, rows: Sequence[Row]) -> list[str]:
        problems = []
        for row in rows:
            if row.memory_bytes is not None and row.memory_bytes > self.room and not row.done:
                problems.append(
                    f"{row.name} takes {row.memory_bytes / 1e9:.1f} GB with micro-batches of"
                    f" {row.micro_batch}; {self.asked.card.name} has {self.room / 1e9:.1f} to spare"
                )
        left = sum(row.bytes for row in rows if not row.done) + self._checkpoint_bytes(rows)
        root = self.asked.store.root
        # The store may not exist yet: ask the disk of its nearest existing parent.
        free = shutil.disk_usage(
            next(folder for folder in (root, *root.parents) if folder.exists())
        ).free
        if left > free:
            problems.append(
                f"the outputs to be made take {left / 1e9:,.1f} GB; {free / 1e9:,.1f} are free in"
                f" {root}"
            )
        return problems

    def _checkpoint_bytes(self, rows: Sequence[Row]) -> int:
        to_do = {row.name for row in rows if not row.done}
        phases = [phase for phase in self.train.phases if f"train.{phase.name}" in to_do]
        found = []
        for phase in phases:
            trained = memory.trained_parameters(self.train.model, phase)
            state = memory.optimizer_bytes(self.train.model, phase)
            found.append(sizes.checkpoint_bytes(trained, state, KEEP))
        # The maximum, not the sum: a phase's checkpoints are removed before the next phase begins.
        return max(found, default=0)


def _done(pipeline: Pipeline, store: Store) -> dict[str, Output]:
    """What is in the store already. Nothing is rehashed, and nothing set aside."""
    graph = OutputGraph(pipeline)
    found = {step.name: graph.made(store, step.name) for step in graph.steps}
    return {name: output for name, output in found.items() if output is not None}
