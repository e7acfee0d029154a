"""One phase of training, from its first step or from a checkpoint, to the files of its output.

Nothing random is kept: batches, noise, timesteps and TREAD's choice follow from the seed and the number of images seen, so that a
checkpoint is tensors and a few numbers, and a killed run goes on bit by bit (on the CPU; elsewhere to rounding).
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from hdm.data.loader import Loader
from hdm.errors import ConfigError, HdmError, InputError
from hdm.models.denoiser import Denoiser
from hdm.models.devices import check_processes, choose_device, deterministic
from hdm.sharding import finite, gathered
from hdm.training import assembly, checkpoint
from hdm.training.best import Best
from hdm.training.checkpoint import Checkpoint, load_weights
from hdm.training.checkpoint_writer import CheckpointWriter
from hdm.training.ema import Average
from hdm.training.feed import DROPOUT, Example, Feed, mixed_seed
from hdm.training.guard import StopRequest
from hdm.training.incidents import (
    MAX_SKIPPED_IN_A_ROW,
    NOT_FINITE,
    SPIKE,
    WENT_BACK,
    exploded,
    hopeless,
    incident,
    is_useless,
    signs_of_explosion,
    spike_warning,
)
from hdm.training.job import METRICS, TIMING, Job, num_steps
from hdm.training.milestones import Milestones, even_steps
from hdm.training.norms import by_part, tensor_norms, total_norm
from hdm.training.optimizers import Optimizers, rate_factor
from hdm.training.origin import origin_folder
from hdm.training.out_of_memory import does_not_fit, is_out_of_memory
from hdm.training.pictures import CutShort
from hdm.training.position import Position
from hdm.training.power_ema import PowerTracks
from hdm.training.records import Metrics, Timing
from hdm.training.results import last_values, make_companions, write_grid, write_results
from hdm.training.running import SAMPLE, SAMPLES, SAVE, Requests
from hdm.training.validation import BATCH_SIZE, Losses, measure

LOG_EVERY, LINES_AT_LEAST = 10, 50  # steps a line of metrics.jsonl; fewer where a phase is short

log = logging.getLogger(__name__)


def train(job: Job, stop: StopRequest) -> bool:
    """Train a phase, or make what comes with its weights; True if it is done, False if it was saved on a signal.

    Raises:
        InputError: models and data do not fit each other.
        DoesNotFitError: memory or disk.
        HdmError: the loss is not finite, again and again or in the last steps.
    """
    settings = job.settings.train
    check_processes(settings.device, settings.num_processes, "train.num_processes")
    device = choose_device(settings.device, "training")
    trainer: Trainer | None = None
    try:
        with deterministic(device == "cpu"):
            if job.milestones is not None:
                make_companions(job, device)
                return True
            trainer = Trainer(job, stop, device)
            return trainer.run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise does_not_fit(job, device, None if trainer is None else trainer.tokens) from error


class Trainer:
    """Everything that a process of the training holds.

    Args:
        job: what to train.
        stop: asked after each step.
        device: "cpu" or "cuda".
    """

    def __init__(self, job: Job, stop: StopRequest, device: str) -> None:
        self.job, self.stop = job, stop
        self.settings, self.phase = job.settings.train, job.phase
        self.num_steps = num_steps(self.phase)
        self.num_images = self.num_steps * self.phase.batch_size
        self.accelerator = assembly.make_accelerator(job, device)
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device

        self.model = assembly.starting_model(job).train()
        self.average = Average(self.model, self.settings.ema_decay)
        assembly.place(job, (self.model, self.average.model), self.accelerator)
        # Whatever calls a sharded model, or puts its tensors together, is done by all processes; otherwise the first one does it alone.
        self.takes_part = self.rank == 0 or self.settings.shards
        self.tracks = PowerTracks(self.model, self.settings.ema_lengths)
        self.milestones = Milestones(Path(job.scratch))
        self.optimizers = Optimizers(self.model, self.phase.optimizer)
        self.conditioning = assembly.make_conditioning(job, self.device)
        loader = assembly.training_loader(job, self.rank, self.world_size)
        self.tokens = assembly.check_fit(job, loader, self.conditioning)
        self.alignment = assembly.make_alignment(job, self.model, loader.batch(0))
        phase, pin = self.phase, self.device.type == "cuda"
        self.objective = assembly.make_objective(job)
        self.feed = Feed(
            loader,
            self.settings.seed,
            self.objective,
            phase.tread_rates,
            self.num_images,
            pin,
        )
        self.position, self.saved_step, self.saved_at = Position(), -1, time.monotonic()
        self.requests, self.writer = (
            Requests(Path(job.scratch)),
            CheckpointWriter(Path(job.scratch)),
        )
        self._resume()
        self.best = Best(
            Path(job.scratch),
            {"weights": self.model, "ema": self.average.model},
            self.position.best_step,
        )
        self._check_watched()
        self.forward = assembly.prepared(job, self.model, self.accelerator, self.alignment)

    def run(self) -> bool:
        """To the end, or to a signal; True if done."""
        self.stop.defer()
        try:
            while True:
                due = time.monotonic() - self.saved_at > self.settings.checkpoint_sec
                asked, sample = (
                    self.rank == 0 and self.requests.wants(what) for what in (SAVE, SAMPLE)
                )
                stopping, saving, sampling = self._agreed(self.stop.requested, due or asked, sample)
                self.writer.check()
                if stopping or saving or sampling:
                    self._save(wait=stopping or asked)
                if stopping:
                    return False
                if sampling:
                    self._sample()
                if self.report():
                    if self.position.ended or self.position.step == self.num_steps:
                        break
                    self.step()
                    self.make_ready()
            self._save(wait=True)
        finally:
            self.feed.close()
            self.writer.close()
        self.stop.release()
        keeps_best = self.settings.keep == "best" and self.position.best_step is not None
        if keeps_best and self.takes_part:
            self.best.load(self.position.best_step or 0)
        self._check_end(only_weights=keeps_best)
        if self.takes_part:
            metrics = self.metrics if self.rank == 0 else None
            with self.accelerator.autocast():
                write_results(
                    self.job,
                    self.model,
                    self.average.model,
                    self.conditioning,
                    metrics,
                    self.milestones,
                )
        self.accelerator.wait_for_everyone()
        return True

    def _agreed(self, *wishes: bool) -> list[bool]:
        """What any process wishes, known to all at the same step."""
        if self.world_size == 1:
            return list(wishes)
        told = self.accelerator.reduce(
            torch.tensor([float(wish) for wish in wishes], device=self.device), "sum"
        )
        return [value > 0 for value in told.tolist()]

    def step(self) -> None:
        """One optimizer step, or a skipped one where loss or gradient is not finite."""
        example = self.feed.example(self.position.num_images_seen)
        factor = rate_factor(
            self.phase.optimizer,
            self.position.num_images_seen + self.phase.batch_size,
            self.num_images,
        )
        loss, cosine, nothing = self._backward(example)
        norms = tensor_norms(
            {
                name: value.grad
                for name, value in self.model.named_parameters()
                if value.grad is not None
            }
        )
        norm = total_norm(list(norms.values()))
        loss_value, cosine_value, of_nothing, norm_value = torch.stack(
            [loss, cosine, nothing, norm]
        ).tolist()  # the step's only wait for the accelerator
        finite = math.isfinite(loss_value) and math.isfinite(norm_value)
        if finite:
            clip_grads_with_norm_(
                self.model.parameters(), self.phase.optimizer.clip_norm, norm, foreach=True
            )
            self.optimizers.step(factor)
            if self.alignment is not None:
                self.alignment.step(factor)
            self.average.update(self.position.step)
        self.tracks.update(self.position.step)  # their clock goes on at a skipped step too
        for parameter in (self.alignment.aligned if self.alignment else self.model).parameters():
            parameter.grad = None
        before = self.position
        self.position = before.after(
            self.phase.batch_size,
            loss_value if finite else None,
            cosine_value,
            useless=is_useless(loss_value, of_nothing),
        )
        if not finite or self.position.spikes > before.spikes:
            self._note(SPIKE if finite else NOT_FINITE, example, loss_value)
        if self.position.skipped_in_row == MAX_SKIPPED_IN_A_ROW:
            self._go_back(example, loss_value, norm_value)
        if self.rank == 0:
            self.meter.count(
                self.phase.batch_size,
                example.batch.crops.shape[1],
                example.batch.text_mask.shape[1],
                example.tread_rate,
            )
        self.position = self._with_line(factor, norm_value, norms)

    def _backward(self, example: Example) -> Tensor:
        """Add up the gradients of this process's share; see `_loss`, but means of the global batch, (3,) on the device."""
        share, total = len(example.batch), torch.zeros(3, device=self.device)
        size = min(self.phase.micro_batch or share, share)
        for start in range(0, share, size):
            last = start + size >= share
            self._seed_dropout(self.phase.batch_size * self.rank // self.world_size + start)
            # Gradients that wait for the last micro-batch are whole ones: of a sharded model each micro-batch's are spread at once.
            with (
                contextlib.nullcontext()
                if last or self.settings.shards
                else self.accelerator.no_sync(self.forward)
            ):
                loss, cosine, nothing = self._loss(
                    example.part(start, start + size).to(self.device)
                )
                objective = (
                    loss if self.alignment is None else loss - self.settings.align_weight * cosine
                )
                # DDP takes the mean over processes, whose shares may differ by one: weigh by the global batch.
                self.accelerator.backward(objective * (self.world_size / self.phase.batch_size))
            total += torch.stack((loss, cosine, nothing)).detach()
        if self.world_size > 1:
            total = self.accelerator.reduce(total, "sum")
        return total / self.phase.batch_size

    def _seed_dropout(self, first: int) -> None:
        """Let what a micro-batch drops depend on its place in the training clock alone: no generator's state has to be saved.

        Cut into other micro-batches, or among other processes, a batch drops other features, as many of them.
        """
        if self.settings.dropout:
            torch.manual_seed(
                mixed_seed(self.settings.seed, DROPOUT, self.position.num_images_seen + first)
            )

    def _loss(self, part: Example) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the samples: the objective's loss; the alignment's cosine, 0 without alignment;
        and the loss of predicting zeros."""
        batch = part.batch
        aligned = {} if self.alignment is None else {"features": batch.features}
        noisy = self.objective.noisy(batch.latent, part.noise, part.timestep)
        with self.accelerator.autocast():
            predicted = self.forward(
                noisy,
                part.timestep,
                self.conditioning.of_batch(batch),
                positions=batch.positions,
                log_aspect=batch.log_aspect,
                text_mask=batch.text_mask,
                kept=part.kept,
                route=self.phase.tread_route,
                **aligned,
            )
        predicted, cosines = predicted if aligned else (predicted, batch.latent.new_zeros(1))
        target = self.objective.target(batch.latent, part.noise, part.timestep)
        losses = self.objective.losses(predicted, target, part.timestep)
        of_nothing = self.objective.losses(torch.zeros_like(target), target, part.timestep)
        return losses.sum(), cosines.sum(), of_nothing.sum()

    def _note(self, what: str, example: Example, loss: float) -> None:
        now = self.position
        self.position = replace(now, incidents=(*now.incidents, incident(what, now, example, loss)))
        if what == SPIKE and self.rank == 0:
            log.warning("%s", spike_warning(now, loss, self.phase.batch_size))

    def _go_back(self, example: Example, loss: float, norm: float) -> None:
        """Take the weights of the last good checkpoint and go on with the batches that come next; the second time, end.

        The batches between, good or bad, are not seen: the same ones on the same weights would lead here again (as PaLM was trained,
        arXiv 2204.02311, section 5.1). Which checkpoint is the last one depends on when they were made.
        """
        self.writer.wait()
        found, now = self._last_good(), self.position
        if found is None or now.gone_back:
            raise hopeless(now, example, loss, norm, self.job, found)
        self._load(found)
        self.position = replace(now, skipped_in_row=0, gone_back=1)
        self._note(WENT_BACK, example, loss)
        if self.rank == 0:
            step = found.state["position"]["step"]
            log.warning(
                "%d steps in a row were not finite: back to the weights of step %d",
                MAX_SKIPPED_IN_A_ROW,
                step,
            )

    def _last_good(self, *, ended: bool = False) -> Checkpoint | None:
        """The newest checkpoint worth going back to; `ended`: the one of the last step is not."""

        def is_wanted(state: Mapping[str, Any]) -> bool:
            at_end = ended and state["position"]["step"] == self.position.step
            return state.get("good", True) and not at_end

        with self.accelerator.main_process_first():  # the first one sets damaged ones aside
            return checkpoint.newest(Path(self.job.scratch), is_wanted)

    def _check_end(self, *, only_weights: bool) -> None:
        """Refuse weights that are worth nothing.

        Args:
            only_weights: the best weights are kept, of which the last steps and their held-out loss say nothing.

        Raises:
            HdmError: training exploded before its end.
        """
        signs = [] if only_weights else self._signs_in_steps()
        if self.takes_part:
            signs += self._signs_in_weights()
        if any(self._agreed(bool(signs))):
            raise exploded(signs, self.job, self._last_good(ended=True))

    def _signs_in_steps(self) -> list[str]:
        """What the last steps and their held-out loss say of an explosion."""
        told = last_values(self.metrics.content) if self.rank == 0 else {}
        lost = "validation_loss" in told and told["validation_loss"] is None
        return [
            *signs_of_explosion(self.position),
            *(["its last held-out loss is not finite"] if lost else []),
        ]

    def _signs_in_weights(self) -> list[str]:
        """What shows that weights or averages are worth nothing: they are not finite, or their loss is useless.

        It is looked at pictures that were trained on, since of few pictures weights learn those by heart, and are wrong about all others.
        """
        loader, signs = assembly.measured_loader(self.job, "train", BATCH_SIZE), list[str]()
        for name, model in (("weights", self.model.eval()), ("averages", self.average.model)):
            found = self._losses(model, loader)
            if not finite(model.state_dict()):
                signs.append(f"its {name} are not finite")
            elif found is not None and is_useless(found.mean, found.of_nothing):
                signs.append(
                    f"its {name} have a loss of {found.mean:.4g} at pictures that were trained on, where predicting nothing has one of "
                    f"{found.of_nothing:.4g}"
                )
        return signs

    def _with_line(self, factor: float, norm: float, norms: Mapping[str, Tensor]) -> Position:
        """The position with the line that is due after this step, the mean loss since the last one in it."""
        now, line = self.position, {}
        if (
            now.step % max(1, min(LOG_EVERY, self.num_steps // LINES_AT_LEAST)) == 0
            or now.step == self.num_steps
        ):
            line = {
                "loss": now.loss_sum / now.loss_count if now.loss_count else None,
                **(
                    {"alignment": now.cosine_sum / max(now.loss_count, 1)} if self.alignment else {}
                ),
                "grad_norm": norm if math.isfinite(norm) else None,
                "grad_norm_of": by_part(norms),
                "weight_norm_of": by_part(tensor_norms(dict(self.model.named_parameters()))),
                "skipped_steps": now.skipped,
                "loss_spikes": now.spikes,
                **({"incidents": list(now.incidents)} if now.incidents else {}),
                **self.optimizers.rates(factor),
            }
            now = replace(now, loss_sum=0.0, cosine_sum=0.0, loss_count=0, incidents=())
        return (
            replace(now, line=line)
            if line or self._validates() or self._snapshots() or self._generates()
            else now
        )

    def _validates(self) -> bool:
        """Whether a held-out loss is due after this step."""
        step, every = self.position.step, self.settings.validate_every
        return step == self.num_steps or (every is not None and step % every == 0)

    def _snapshots(self) -> bool:
        """Whether the power-function averages are written down after this step."""
        return bool(self.settings.ema_lengths) and (
            self.position.ended or self.position.step in self._snapshot_steps
        )

    @cached_property
    def _snapshot_steps(self) -> frozenset[int]:
        return even_steps(self.num_steps, self.settings.ema_snapshots)

    def report(self) -> bool:
        """Do and write what is due after this step; False if a signal cut it short: it is then due again on resuming."""
        if self.position.line is None:
            return True
        measured = self._measured() if self.takes_part else {}
        if (self._validates() or self._generates()) and any(self._agreed(measured is None)):
            return False
        line: dict[str, Any] = dict(self.position.line)
        if self._validates():
            line |= self._watched(measured or {})
        now = self.position
        if self._snapshots() and self.takes_part:
            self.milestones.add_snapshots(now.step, self.tracks.tensors(), writes=self.rank == 0)
        if self.rank == 0:
            if line:
                self.metrics.add(now.step, now.num_images_seen, line)
            if "loss" in line:
                waited, held = self.feed.waited_sec, self.optimizers.num_bytes
                self.timing.add(
                    now.step, now.num_images_seen, line["loss"], waited, self.meter, held
                )
        self.position = replace(now, line=None)
        return True

    def _generates(self) -> bool:
        """Whether pictures are due after this step."""
        seen, every = self.position.num_images_seen, self.settings.generate_every
        return every is not None and seen // every > (seen - self.phase.batch_size) // every

    def _measured(self) -> dict[str, Any] | None:
        """The held-out losses that are due, and the pictures in their file; None if a signal came meanwhile."""
        measured = self._validate() if self._validates() else {}
        if measured is None or not self._generates():
            return measured
        name = f"generated-{self.position.num_images_seen:010d}.png"
        try:
            with (
                self.milestones.write(name) if self.rank == 0 else contextlib.nullcontext() as path
            ):
                self._write_grid(path)
        except CutShort:
            return None
        return measured

    def _watched(self, measured: dict[str, Any]) -> dict[str, Any]:
        """What was measured, and what follows from it: the best step, and whether the phase ends here."""
        if not self.settings.watches:
            return measured
        now = self.position
        if self.rank == 0:
            # After a lost step the averages may be whole beside weights that are not.
            loss = None if now.lost_in_row else measured[self.settings.watch]
            now = now.watched(loss, self.settings.patience)
            measured = {**measured, "best_step": now.best_step}
        ended, best = self._agreed(now.ended, now.best_step == now.step)
        if best and self.settings.keep == "best" and self.takes_part:
            self.best.add(now.step, writes=self.rank == 0)
        self.position = replace(now, ended=ended, best_step=now.step if best else now.best_step)
        return measured

    def _validate(self) -> dict[str, Any] | None:
        """The held-out losses of the averaged and, as asked, of the raw weights; None if a signal came meanwhile."""
        found = self._losses(self.average.model, self._validation_loader)
        if found is None or not self.settings.validate_raw:
            return None if found is None else found.held_out()
        raw = self._losses(self.model.eval(), self._validation_loader)
        self.model.train()
        if raw is None:
            return None
        told = {f"raw_{name}": value for name, value in raw.held_out().items()}
        return {**found.held_out(), **told}

    def _losses(self, model: Denoiser, loader: Loader) -> Losses | None:
        return measure(
            model,
            loader,
            self.conditioning,
            self.objective,
            self.accelerator.autocast,
            self.settings.seed,
            self._cut_short,
        )

    def _write_grid(self, path: Path | None) -> None:
        """Pictures of the averages; None on a process that only takes part."""
        with self.accelerator.autocast():
            write_grid(
                self.job,
                self.average.model,
                self.conditioning,
                path,
                self._cut_short,
            )

    def _cut_short(self) -> bool:
        """Whether a signal came; processes that compute together stop together."""
        return self._agreed(self.stop.requested)[0] if self.settings.shards else self.stop.requested

    def _check_watched(self) -> None:
        if self.settings.watches and not len(self._validation_loader):
            raise InputError(
                "train.keep: best and train.patience need pictures held out for validation",
                where="filter.validation",
                do="raise it",
            )

    @cached_property
    def _validation_loader(self) -> Loader:
        return assembly.measured_loader(self.job, "validation", BATCH_SIZE)

    def _sample(self) -> None:
        """Pictures of the averaged weights as they are now."""
        if self.takes_part:
            path = Path(self.job.folder) / SAMPLES / f"{self.position.step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            try:
                with contextlib.suppress(CutShort):
                    self._write_grid(path if self.rank == 0 else None)
            except HdmError as error:  # nobody loses a training to a wish
                log.warning("no pictures were made: %s", error)
        if self.rank == 0:
            self.requests.done(SAMPLE)
        self.accelerator.wait_for_everyone()

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Of a checkpoint; of a sharded model whole copies on the first process, made by all together."""
        return {
            "weights": gathered(self.model.state_dict()),
            "ema": gathered(self.average.model.state_dict()),
            "optimizer": gathered(self.optimizers.tensors()),
            **{name: gathered(track) for name, track in self.tracks.tensors().items()},
            **(self.alignment.tensors() if self.alignment else {}),
        }

    def make_ready(self) -> None:
        """Memory for checkpoints, once the optimizers have had a step that was not skipped."""
        if (
            self.rank == 0
            and not self.settings.shards
            and not self.writer.ready
            and self.position.loss_count
        ):
            self.writer.make_ready(self._tensors())

    def _save(self, *, wait: bool) -> None:
        """A checkpoint of where training stands, unless there is one already; waits until it is there, or goes on meanwhile."""
        tensors = (
            self._tensors() if self.position.step != self.saved_step and self.takes_part else None
        )
        if tensors is not None and self.rank == 0:
            state = {
                "digest": self.job.digest,
                "identity": self.job.identity,
                "made_by": {"hdm-pipeline": version("hdm-pipeline"), "torch": torch.__version__},
                "good": self._is_good(tensors),
                "position": asdict(self.position),
            }
            then = partial(self.best.saved, self.position.best_step)
            step, metrics = self.position.step, self.metrics.content
            self.writer.write(step, tensors, metrics, state, then, copied=self.settings.shards)
        if wait:
            self.writer.wait()
            if self.rank == 0:
                self.requests.done(SAVE)
        self.saved_step, self.saved_at = self.position.step, time.monotonic()

    def _is_good(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> bool:
        """Whether training may go back to a checkpoint of these tensors."""
        now = self.position
        return not now.lost_in_row and not now.exploded and all(map(finite, tensors.values()))

    def _resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one."""
        with self.accelerator.main_process_first():  # the first one sets damaged ones aside
            found = checkpoint.newest(Path(self.job.scratch))
        origin = origin_folder(self.job) if found is None else None
        if found is not None:
            self._check_same_run(found)
            self._load(found)
            self.position = Position(**found.state["position"])
            self.saved_step = self.position.step
        elif origin is not None:
            found = checkpoint.read(origin)
            self._load(found)
            self.position = Position(**found.state["position"]).with_batches_of(
                self.phase.batch_size
            )
        if self.rank == 0:
            self.metrics = Metrics(Path(self.job.folder) / METRICS, found.metrics if found else b"")
            self.timing = Timing(Path(self.job.folder) / TIMING, self.position.num_images_seen)
            self.meter = assembly.make_meter(
                self.job, self.device, self.world_size, self.timing.before
            )

    def _load(self, found: Checkpoint) -> None:
        """Weights, averages and the optimizers' state of a checkpoint."""
        load_weights(self.model, found.tensors("weights"), found.path)
        load_weights(self.average.model, found.tensors("ema"), found.path)
        self.optimizers.load(found.tensors("optimizer"))
        for name in self.tracks.tensors():
            self.tracks.load(name, found.tensors(name))
        if self.alignment is not None:
            self.alignment.load(found.tensors)

    def _check_same_run(self, found: Checkpoint) -> None:
        made_with = found.state.get("made_by", {}).get("torch", torch.__version__)
        if made_with != torch.__version__ and self.rank == 0:
            log.warning(
                "the checkpoint was made with torch %s, this is %s: what comes is not bit for bit the same",
                made_with,
                torch.__version__,
            )
        if found.state["digest"] != self.job.digest:
            changed = sorted(
                key
                for key, value in self.job.identity.items()
                if found.state["identity"].get(key) != value
            )
            raise ConfigError(
                f"the checkpoint is of another configuration: {', '.join(changed)} changed",
                where=found.path,
                do="undo the change, or remove the checkpoint",
            )
