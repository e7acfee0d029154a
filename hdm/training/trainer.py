"""One phase of training, from its first step or from a checkpoint, to the files of its output.

Nothing random is kept: batches, noise, timesteps and TREAD's choice follow from the seed and the number of images seen, so that a
checkpoint is tensors and a few numbers, and a killed run goes on bit by bit (on the CPU; elsewhere to rounding).
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from hdm.config import Phase, TrainSettings
from hdm.data.loader import Loader
from hdm.diffusion.flow_matching import interpolate, sample_losses, velocity
from hdm.errors import ConfigError, DoesNotFitError, HdmError, InputError
from hdm.files import write_json
from hdm.models.devices import choose_device
from hdm.models.xut import XUT
from hdm.training import checkpoint, validation
from hdm.training.checkpoint import load_weights, save_tensors
from hdm.training.conditioning import Conditioning
from hdm.training.ema import Average
from hdm.training.feed import Example, Feed
from hdm.training.guard import StopRequest
from hdm.training.job import EMA, GENERATED, METRICS, MODEL, SUMMARY, TIMING, WEIGHTS, Job, num_steps
from hdm.training.optimizers import Optimizers, rate_factor
from hdm.training.pictures import generate_grid, prompts_to_show
from hdm.training.records import Metrics, Timing, peak_memory_bytes

LOG_EVERY = 10  # steps a line of metrics.jsonl, fewer where a phase is short
LINES_AT_LEAST = 50
MAX_SKIPPED_IN_A_ROW = 10


def train(job: Job, stop: StopRequest) -> bool:
    """Train a phase; True if it is done, False if it was saved on a signal.

    Raises:
        InputError: models and data do not fit each other.
        DoesNotFitError: memory or disk.
        HdmError: the loss is not finite, again and again.
    """
    device = choose_device(job.settings.train.device, "training")
    try:
        with _deterministic(device):
            return Trainer(job, stop, device).run()
    except torch.OutOfMemoryError as error:
        raise DoesNotFitError(
            f"the accelerator's memory does not hold a step; {peak_memory_bytes() / 1e9:.1f} GB were in use at most",
            where=f"train.phases.{job.number}",
            do="set micro_batch to half of what it is, or checkpoint_blocks: 1.0; neither changes the result",
        ) from error


@contextlib.contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """The same bits at every run; on the CPU alone, since it costs speed elsewhere."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(device == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@dataclass(frozen=True)
class Position:
    """Where training stands. `loss_sum` and `loss_count` are of the steps since the last line of metrics."""

    step: int = 0
    num_images_seen: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0


class Trainer:
    """Everything that a process of the training holds.

    Args:
        job: what to train.
        stop: asked after each step.
        device: "cpu" or "cuda".
    """

    def __init__(self, job: Job, stop: StopRequest, device: str) -> None:
        self.job, self.stop = job, stop
        self.settings: TrainSettings = job.settings.train
        self.phase: Phase = job.phase
        self.num_steps = num_steps(self.phase)
        self.num_images = self.num_steps * self.phase.batch_size
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if self.settings.precision == "bfloat16" else "no")
        _set_threads(job.settings.threads, self.accelerator.num_processes)
        self._check_batch()
        self.device = self.accelerator.device
        self.model = self._starting_model().to(self.device).train()
        self.average = Average(self.model, self.settings.ema_decay)
        self.optimizers = Optimizers(self.model, self.phase.optimizer)
        self.conditioning = self._conditioning()
        self.feed = Feed(self._loader("train", self.phase.batch_size), self.settings.seed, self.phase.timestep_shift, self.phase.tread_rate)
        self.position = Position()
        self._resume()
        self._check_fit()
        self.forward = self._prepared()

    # -- setting up

    def _check_batch(self) -> None:
        if self.phase.batch_size < self.accelerator.num_processes:
            raise ConfigError(
                f"a batch of {self.phase.batch_size} cannot be shared by {self.accelerator.num_processes} processes",
                where=f"train.phases.{self.job.number}.batch_size",
                do="raise it or lower train.num_processes",
            )

    def _starting_model(self) -> XUT:
        """The averaged weights of the phase before, or new ones from the seed."""
        torch.manual_seed(self.settings.seed)
        model, before = XUT(self.settings.model), self.job.before()
        if before is not None:
            load_weights(model, load_file(before.file(EMA)), before.file(EMA))
        return model

    def _conditioning(self) -> Conditioning:
        half = self.settings.precision == "bfloat16" and self.device.type == "cuda"
        tokens = self.job.output("encode.tokens")
        max_tokens = self.phase.max_tokens or int(tokens.config["max_tokens"])
        return Conditioning(self.job.text_encoder, self.device, torch.bfloat16 if half else torch.float32, max_tokens)

    def _loader(self, split: str, batch_size: int, shared: bool = True, **changes: Any) -> Loader:
        job = self.job
        options: dict[str, Any] = dict(
            seed=self.settings.seed,
            crop=self.settings.crop,
            caption_dropout=self.settings.caption_dropout,
            max_tokens=self.phase.max_tokens,
            positions=self.settings.model.positions,
            rank=self.accelerator.process_index if shared else 0,
            world_size=self.accelerator.num_processes if shared else 1,
        )
        return Loader(
            job.output(f"encode.{self.phase.name}"),
            job.output("encode.tokens"),
            job.output("caption"),
            job.output("filter"),
            job.output("encode.text") if "encode.text" in job.inputs else None,
            split=split,
            batch_size=batch_size,
            patch_size=self.settings.model.patch_size,
            **{**options, **changes},
        )

    def _check_fit(self) -> None:
        """Latents, text embeddings and model, before the first step."""
        batch, model = self.feed.loader.batch(0), self.settings.model
        if batch.latent.shape[1] != model.channels:
            raise InputError(
                f"the latents have {batch.latent.shape[1]} channels, the model {model.channels}",
                where="train.model.channels",
                do=f"set train.model.channels to {batch.latent.shape[1]}",
            )
        width = batch.text.shape[-1] if batch.text is not None else self.conditioning.encoder.width
        if width != model.text_width:
            raise InputError(
                f"the text encoder's embeddings are {width} wide, the model reads {model.text_width}",
                where="train.model.text_width",
                do=f"set train.model.text_width to {width}, or name another text encoder",
            )

    def _resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one."""
        folder = Path(self.job.scratch)
        with self.accelerator.main_process_first():  # the first one sets damaged ones aside
            found = checkpoint.newest(folder)
        self.saved_step = -1
        if found is not None:
            self._check_same_run(found)
            load_weights(self.model, found.tensors("weights"), found.path)
            load_weights(self.average.model, found.tensors("ema"), found.path)
            self.optimizers.load(found.tensors("optimizer"))
            self.position = Position(**found.state["position"])
            self.saved_step = self.position.step
        if self.accelerator.is_main_process:
            self.metrics = Metrics(Path(self.job.folder) / METRICS, found.metrics if found else b"")
            self.timing = Timing(Path(self.job.folder) / TIMING, self.position.num_images_seen)

    def _check_same_run(self, found: checkpoint.Checkpoint) -> None:
        if found.state["digest"] == self.job.digest:
            return
        changed = sorted(key for key, value in self.job.identity.items() if found.state["identity"].get(key) != value)
        raise ConfigError(
            f"the checkpoint is of another configuration: {', '.join(changed)} changed",
            where=found.path,
            do="undo the change, or remove it",
        )

    def _prepared(self) -> Callable[..., Tensor]:
        """The model as it is called in training: recomputing, in DDP, in autocast, compiled, as asked."""
        _recompute(self.model, self.phase.checkpoint_blocks)
        prepared = self.accelerator.prepare(self.model)
        return torch.compile(prepared) if self.settings.compile else prepared

    # -- the loop

    def run(self) -> bool:
        """To the end, or to a signal; True if done."""
        self.stop.defer()
        self.saved_at = time.monotonic()
        try:
            while self.position.step < self.num_steps:
                stopping, saving = self._agreed(self.stop.requested, time.monotonic() - self.saved_at > self.settings.checkpoint_sec)
                if stopping or saving:
                    self._save()
                if stopping:
                    return False
                self._step()
        finally:
            self.feed.close()
        self._save()
        self.stop.release()
        if self.accelerator.is_main_process:
            self._finish()
        self.accelerator.wait_for_everyone()
        return True

    def _agreed(self, *wishes: bool) -> list[bool]:
        """What any process wishes, known to all at the same step."""
        if self.accelerator.num_processes == 1:
            return list(wishes)
        told = self.accelerator.reduce(torch.tensor([float(wish) for wish in wishes], device=self.device), "sum")
        return [value > 0 for value in told.tolist()]

    def _step(self) -> None:
        """One optimizer step, or a skipped one where loss or gradient is not finite."""
        position = self.position
        example = self.feed.example(position.num_images_seen)
        seen = position.num_images_seen + self.phase.batch_size
        factor = rate_factor(self.phase.optimizer, seen, self.num_images)
        loss = self._backward(example)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = get_total_norm(gradients, foreach=True)
        loss_value, norm_value = torch.stack([loss, norm]).tolist()  # the step's only wait for the accelerator
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            clip_grads_with_norm_(self.model.parameters(), self.phase.optimizer.clip_norm, norm, foreach=True)
            self.optimizers.set_rate(factor)
            self.optimizers.step()
            self.average.update(position.step)
            taken = dict(skipped_in_row=0, loss_sum=position.loss_sum + loss_value, loss_count=position.loss_count + 1)
        else:
            taken = dict(skipped=position.skipped + 1, skipped_in_row=position.skipped_in_row + 1)
        for parameter in self.model.parameters():
            parameter.grad = None
        self.position = replace(position, step=position.step + 1, num_images_seen=seen, **taken)
        self._check_skipped(example, loss_value, norm_value)
        self._record(factor, norm_value)

    def _backward(self, example: Example) -> Tensor:
        """Add up the gradients of this process's share; the loss of the global batch (a scalar on the device)."""
        share, total = len(example.batch), torch.zeros((), device=self.device)
        size = min(self.phase.micro_batch or share, share)
        for start in range(0, share, size):
            last = start + size >= share
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.forward):
                loss = self._loss(example.part(start, start + size).to(self.device))
                # DDP takes the mean over processes, whose shares may differ by one: weigh by the global batch.
                self.accelerator.backward(loss * (self.accelerator.num_processes / self.phase.batch_size))
            total += loss.detach()
        return self.accelerator.reduce(total, "sum") / self.phase.batch_size if self.accelerator.num_processes > 1 else total / share

    def _loss(self, part: Example) -> Tensor:
        """Mean squared error of the velocity by sample, summed over the samples."""
        batch = part.batch
        noisy = interpolate(batch.latent, part.noise, part.timestep)
        with self.accelerator.autocast():
            text = self.conditioning.of_batch(batch)
            predicted = self.forward(
                noisy,
                part.timestep,
                text,
                positions=batch.positions,
                log_aspect=batch.log_aspect,
                text_mask=batch.text_mask,
                kept=part.kept,
            )
        return sample_losses(predicted, velocity(batch.latent, part.noise)).sum()

    def _check_skipped(self, example: Example, loss: float, norm: float) -> None:
        if self.position.skipped_in_row < MAX_SKIPPED_IN_A_ROW:
            return
        seen, size = self.position.num_images_seen, self.phase.batch_size
        raise HdmError(
            f"{MAX_SKIPPED_IN_A_ROW} steps in a row had no finite loss or gradient (loss {loss}, gradient norm {norm}); the last one is "
            f"step {self.position.step}, images {seen - size} to {seen}, pictures {', '.join(example.batch.keys[:8])}, …",
            where=f"train.{self.phase.name}",
            do="lower the learning rate or clip_norm, or look at these pictures' latents",
        )

    def _record(self, factor: float, norm: float) -> None:
        position, validating = self.position, self.settings.validate_every
        every = max(1, min(LOG_EVERY, self.num_steps // LINES_AT_LEAST))
        if position.step % every == 0 or position.step == self.num_steps:
            loss = position.loss_sum / position.loss_count if position.loss_count else None
            self.position = replace(position, loss_sum=0.0, loss_count=0)
            if self.accelerator.is_main_process:
                self._log(loss, factor, norm)
        if validating and position.step % validating == 0 and position.step < self.num_steps:
            if self.accelerator.is_main_process:
                self._validate()
            self.accelerator.wait_for_everyone()

    def _log(self, loss: float | None, factor: float, norm: float) -> None:
        """A line of metrics, with the mean loss since the last one."""
        position = self.position
        self.metrics.add(
            step=position.step,
            num_images_seen=position.num_images_seen,
            loss=loss,
            grad_norm=norm if math.isfinite(norm) else None,
            skipped_steps=position.skipped,
            **self.optimizers.rates(factor),
        )
        self.timing.add(position.step, position.num_images_seen, loss, self.feed.waited_sec)

    # -- what is kept

    def _save(self) -> None:
        """A checkpoint of where training stands, unless there is one already."""
        self.saved_at = time.monotonic()
        if self.position.step != self.saved_step and self.accelerator.is_main_process:
            tensors = {"weights": self.model.state_dict(), "ema": self.average.model.state_dict(), "optimizer": self.optimizers.tensors()}
            state = {"digest": self.job.digest, "identity": self.job.identity, "position": asdict(self.position)}
            checkpoint.save(Path(self.job.scratch), self.position.step, tensors, self.metrics.content, state)
        self.saved_step = self.position.step

    def _validate(self) -> dict[str, Any]:
        """A line with the held-out loss of the averaged weights."""
        loader = self._loader("validation", validation.BATCH_SIZE, shared=False, caption_dropout=0.0, crop="centre")
        found = validation.validate(self.average.model, loader, self.conditioning, self.accelerator.autocast, self.settings.seed)
        if found:
            self.metrics.add(step=self.position.step, num_images_seen=self.position.num_images_seen, **found)
        return found

    def _finish(self) -> None:
        """Measure, generate, and write the files of the output."""
        result, settings = self.job.result, self.settings
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        measured = self._validate()
        prompts = prompts_to_show(settings.prompts, self.job.output("caption"), self.job.output("filter"))
        with self.accelerator.autocast():
            generate_grid(
                result / GENERATED,
                self.average.model,
                self.conditioning,
                self.job.autoencoder,
                prompts,
                self.phase.resolution,
                settings.seed,
            )
        save_tensors(result / WEIGHTS, self.model.state_dict())
        save_tensors(result / EMA, self.average.model.state_dict())
        model = {"xut": settings.model.to_dict(), "resolution": self.phase.resolution, "components": self.job.identity["weights"]}
        write_json(result / MODEL, model)
        shutil.copyfile(self.metrics.path, result / METRICS)
        write_json(result / SUMMARY, self._summary(prompts, measured))

    def _summary(self, prompts: list[str], measured: dict[str, Any]) -> dict[str, Any]:
        lines = [json.loads(line) for line in self.metrics.content.splitlines()]
        return {
            "steps": self.position.step,
            "num_images_seen": self.position.num_images_seen,
            "skipped_steps": self.position.skipped,
            "loss": next((line["loss"] for line in reversed(lines) if line.get("loss") is not None), None),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "prompts": prompts,
            **measured,
        }


def _recompute(model: XUT, share: float) -> None:
    """Give up the activations of the first `share` of the blocks; they are computed again when gradients need them."""
    blocks = list(model.blocks())
    for block in blocks[: round(share * len(blocks))]:
        block.forward = partial(torch_checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]


def _set_threads(threads: int | None, num_processes: int) -> None:
    """Share the CPU among the processes; a setting of the pipeline wins."""
    if threads is not None:
        torch.set_num_threads(threads)
