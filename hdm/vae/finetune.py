"""Train an autoencoder to its last step, from its first step or from a checkpoint.

No random state is saved: crops, transforms and draws are functions of the seed and the step. A
killed run therefore resumes bit by bit (on the CPU; elsewhere up to rounding).
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from hdm.chance import endless
from hdm.errors import ConfigError, HdmError, SavedOnSignal
from hdm.models.autoencoder import raw_latent
from hdm.models.equivariance import Transform, draw_transform
from hdm.pixels import to_image
from hdm.progress import Tracker, track
from hdm.sharding import finite
from hdm.training.loop import run_course
from hdm.training.measures.records import Metrics, Timing
from hdm.training.process.guard import Signals, signals_counted
from hdm.training.process.job import METRICS, TIMING
from hdm.training.state import checkpoint
from hdm.training.state.average import Average
from hdm.training.state.checkpoint import load_weights
from hdm.training.state.incidents import forgotten
from hdm.training.state.optimizers import Optimizers, rate_factor
from hdm.training.state.position import BLOCK_IMAGES, explained
from hdm.vae.losses import Objective, pixel_difference
from hdm.vae.settings import VaeSettings
from hdm.vae.squares import middle_square, random_square, resized

LOOKS = 8  # number of times that `Finetuning.explained` is measured
LOG_EVERY = 10  # steps for each line of metrics.jsonl
LINES_AT_LEAST = 20  # a short run writes a line after fewer steps


@dataclass(frozen=True)
class Place:
    """Where a run writes.

    Args:
        folder: of `metrics.jsonl` and `timing.jsonl`.
        scratch: folder of checkpoints.
        digest: of settings, pictures and the autoencoder to start from; a checkpoint of another
            digest is refused.
    """

    folder: Path
    scratch: Path
    digest: str


@dataclass(frozen=True)
class Batch:
    """Squares (B, 3, S, S) in [-1, 1], the transform of a step, and the seed of its draws."""

    image: Tensor
    transform: Transform
    draw_seed: int


def make_batch(pictures: Sequence[np.ndarray], settings: VaeSettings, step: int) -> Batch:
    """The batch of a step: random squares along the longer sides of pictures. Every picture comes
    once before any comes again.
    """
    numbers = np.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
    # Each step has its own generator, so resuming needs no random state.
    rng = np.random.default_rng((settings.seed, step))
    squares = []
    for item in endless(numbers, len(pictures), settings.seed).tolist():
        picture = resized(pictures[item], settings.size_px)
        squares.append(random_square(picture, settings.size_px, rng))
    transform = draw_transform(rng, settings.scales)
    return Batch(to_image(np.stack(squares)), transform, int(rng.integers(2**62)))


def takes_muon(name: str, tensor: Tensor) -> bool:
    """Whether Muon updates a tensor of an autoencoder: convolutions, and matrices with more than
    one row and one column.
    """
    # Muon has nothing to make orthogonal in a single row or column.
    return tensor.ndim >= 2 and min(tensor.shape[:2]) > 1


@dataclass
class _Position:
    """Progress of the training: steps done, the terms' sums over the `count` steps since the last
    line of metrics, and the highest value of `Finetuning.explained` so far.
    """

    step: int = 0
    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    most_explained: float | None = None


class Finetuning:
    """An autoencoder's training, driven by `run_course`.

    Args:
        model: a diffusers autoencoder on its device; its weights change.
        pictures: (H, W, 3) uint8 each, of any size.
        settings: how to train.
        place: where to write; a checkpoint there is resumed.

    Raises:
        ConfigError: the checkpoint there belongs to another run.
        InputError: weights of a perceptual term are missing.
    """

    signals: Signals
    bar: Tracker
    batches: Generator[Batch]

    def __init__(
        self, model: Any, pictures: Sequence[np.ndarray], settings: VaeSettings, place: Place
    ) -> None:
        # Convolutions are fastest in the channels-last layout.
        self.model = model.requires_grad_(True).to(memory_format=torch.channels_last)
        self.pictures = pictures
        self.settings = settings
        self.place = place
        self.device = next(model.parameters()).device
        # The last step may go beyond `num_images`.
        self.num_steps = -(-settings.num_images // settings.batch_size)
        self.objective = Objective(settings, str(self.device))
        self.optimizers = Optimizers(model, settings.optimizer, takes_muon)
        self.average = Average(model, settings.ema_decay) if settings.ema_decay else None
        self.position = _Position()
        self.saved_step = -1
        self.saved_at = time.monotonic()
        self._resume()

    def run(self) -> None:
        """Train to the end. The model then has its final weights and requires no gradients.

        Raises:
            SavedOnSignal: SIGTERM or SIGINT came; the next run goes on from the checkpoint.
            HdmError: the loss or, at the end, the weights are not finite.
        """
        total = self.num_steps * self.settings.batch_size
        with signals_counted() as signals, track("vae", total, "images") as bar:
            bar.advance(self.num_images_seen, "")
            # A pretrained autoencoder explains much from the start, and training may lose it.
            if self.position.most_explained is None:
                self._look()
            self.signals = signals
            self.bar = bar
            self.batches = self._batches()
            is_done = run_course(self)
        if not is_done:
            raise SavedOnSignal(
                "stopped on a signal after saving",
                where=self.place.folder,
                do="run the same command again to go on",
            )
        if self.average is not None:
            self.model.load_state_dict(self.average.model.state_dict())
        if not finite(self.model.state_dict()):
            raise HdmError(
                "training exploded in its last step: the weights are not finite",
                where="vae",
                do="lower the learning rate",
            )
        # Finite weights may still be ruined: they then explain far less than they once did.
        signs = forgotten(self.position.most_explained, self.explained())
        if signs:
            raise HdmError(
                f"training exploded before its end: {', '.join(signs)}; nothing was written",
                where="vae",
                do="lower the learning rate, and run it anew",
            )
        # Weights are written in the ordinary layout.
        self.model.requires_grad_(False).to(memory_format=torch.contiguous_format)

    @property
    def num_images_seen(self) -> int:
        return self.position.step * self.settings.batch_size

    @property
    def is_done(self) -> bool:
        return self.position.step == self.num_steps

    def serve(self) -> bool:
        is_late = time.monotonic() - self.saved_at > self.settings.checkpoint_sec
        # After the last step, there is nothing left to stop.
        stopping = self.signals.count > 0 and not self.is_done
        if stopping or is_late:
            self.save()
        return stopping

    def report(self) -> bool:
        """Write a line of metrics if one is due."""
        now = self.position
        every = max(1, min(LOG_EVERY, self.num_steps // LINES_AT_LEAST))
        if not now.count or (now.step % every and not self.is_done):
            return True
        means = {name: total / now.count for name, total in now.sums.items()}
        rates = self.optimizers.rates(self._rate_factor(now.step))
        self.metrics.add(now.step, self.num_images_seen, {**means, **rates})
        held = self.optimizers.num_bytes
        self.timing.add(now.step, self.num_images_seen, means["loss"], 0.0, optimizer_bytes=held)
        # The line is written, so its sums start anew.
        self.position = _Position(now.step, most_explained=now.most_explained)
        return True

    def _look(self) -> None:
        """Measure `explained` and keep the maximum."""
        most = self.position.most_explained
        now = self.explained()
        self.position.most_explained = now if most is None else max(most, now)

    @torch.no_grad()
    def explained(self) -> float:
        """Share of the first pictures' difference from their mean colour that their latents
        reconstruct.
        """
        settings = self.settings
        error = 0.0
        of_nothing = 0.0
        # Always the same pictures, so that only the weights can make the value fall.
        for start in range(0, min(BLOCK_IMAGES, len(self.pictures)), settings.batch_size):
            some = range(start, min(start + settings.batch_size, len(self.pictures)))
            squares = [middle_square(self.pictures[item], settings.size_px) for item in some]
            image = to_image(np.stack(squares)).to(self.device)
            decoded = self.model.decode(raw_latent(self.model.encode(image), None)).sample
            # Batches may differ in size, so their means are weighted.
            error += len(some) * pixel_difference(decoded, image).item()
            mean = image.mean((2, 3), keepdim=True)
            of_nothing += len(some) * pixel_difference(mean, image).item()
        return explained(error, of_nothing)

    def _batches(self) -> Generator[Batch]:
        """Batches of the remaining steps. A thread prepares the next one during each step."""
        with ThreadPoolExecutor(1, thread_name_prefix="pictures") as thread:
            # A thread prepares the next batch while this one is used.
            steps = range(self.position.step, self.num_steps)
            waiting = (
                thread.submit(make_batch, self.pictures, self.settings, steps[0]) if steps else None
            )
            for step in steps:
                assert waiting is not None
                batch = waiting.result()
                if step + 1 < self.num_steps:
                    waiting = thread.submit(make_batch, self.pictures, self.settings, step + 1)
                yield batch

    def step(self) -> None:
        batch = next(self.batches)
        now = self.position
        size = self.settings.batch_size
        # The posterior is sampled on the model's device.
        generator = torch.Generator(self.device).manual_seed(batch.draw_seed)
        image = batch.image.to(self.device, memory_format=torch.channels_last)
        loss, terms = self.objective(self.model, image, batch.transform, generator)
        loss.backward()
        clip_grad_norm_(self.model.parameters(), self.settings.optimizer.clip_norm)
        # One transfer from the device for all values.
        numbers = torch.stack([loss, *terms.values()]).detach().tolist()
        values = dict(zip(("loss", *terms), numbers, strict=True))
        # The check comes before the optimizer's step, which would carry the value into weights and
        # averages.
        if not all(map(math.isfinite, values.values())):
            raise HdmError(
                f"the loss is not finite at step {now.step}: {values}",
                where="vae",
                do="lower the learning rate",
            )
        self.optimizers.step(self._rate_factor(now.step + 1))
        self.model.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(now.step)
        now.step += 1
        now.count += 1
        for name, value in values.items():
            now.sums[name] = now.sums.get(name, 0.0) + value
        self.bar.advance(size, f"loss {values['loss']:.4f}")
        if now.step % max(1, self.num_steps // LOOKS) == 0 and not self.is_done:
            self._look()

    def _rate_factor(self, steps: int) -> float:
        """Share of the full learning rate in the step with this number, counted from 1."""
        size = self.settings.batch_size
        optimizer = self.settings.optimizer
        return rate_factor(optimizer, steps * size, self.num_steps * size)

    def save(self) -> None:
        # A signal may come right after a timed checkpoint of the same step.
        if self.position.step == self.saved_step:
            return
        tensors = {"weights": self.model.state_dict(), "optimizer": self.optimizers.tensors()}
        if self.average is not None:
            tensors["ema"] = self.average.model.state_dict()
        state = {"digest": self.place.digest, "position": asdict(self.position)}
        checkpoint.save(
            self.place.scratch, self.position.step, tensors, self.metrics.content, state
        )
        self.saved_step = self.position.step
        self.saved_at = time.monotonic()

    def close(self) -> None:
        self.batches.close()

    def _resume(self) -> None:
        """Resume from the newest intact checkpoint, if there is one."""
        self.place.scratch.mkdir(parents=True, exist_ok=True)
        saved = checkpoint.newest(self.place.scratch)
        if saved is not None:
            # Outside a store, the user chooses the folder, which may hold another run's checkpoint.
            if saved.state["digest"] != self.place.digest:
                raise ConfigError(
                    "the checkpoint is of other settings, pictures or weights",
                    where=saved.path,
                    do="undo the change, or name another folder",
                )
            load_weights(self.model, saved.tensors("weights"), saved.path)
            self.optimizers.load(saved.tensors("optimizer"))
            if self.average is not None:
                load_weights(self.average.model, saved.tensors("ema"), saved.path)
            self.position = _Position(**saved.state["position"])
            self.saved_step = self.position.step
        # The file restarts with the checkpoint's lines; the steps after it are made again.
        self.metrics = Metrics(self.place.folder / METRICS, saved.metrics if saved else b"")
        self.timing = Timing(self.place.folder / TIMING, self.num_images_seen)
