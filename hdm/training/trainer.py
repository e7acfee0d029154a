"""One phase of training, from its first step or from a checkpoint, to the files of its output.

Nothing random is kept: batches, noise, timesteps and TREAD's choice follow from the seed and the
number of images seen, so that a checkpoint is tensors and a few numbers, and a killed run goes on
bit by bit (on the CPU; elsewhere to rounding).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from hdm.kernels import install
from hdm.models.devices import check_processes, choose_device, deterministic
from hdm.training import assembly
from hdm.training.denoising import Denoising
from hdm.training.duties import Duties
from hdm.training.ending import check_end
from hdm.training.loop import run_course
from hdm.training.measures.explanation import Explanation
from hdm.training.measures.logbook import open_logbook, step_line
from hdm.training.measures.norms import gradient_norms, total_norm
from hdm.training.measures.sample_grid import Grid
from hdm.training.measures.validation import Measurement
from hdm.training.out_of_memory import does_not_fit, is_out_of_memory
from hdm.training.process.guard import StopRequest
from hdm.training.process.job import Job, num_steps
from hdm.training.process.ranks import CutShort, Ranks
from hdm.training.process.running import Requests
from hdm.training.results import make_companions, write_results
from hdm.training.state.checkpoints import Checkpoints
from hdm.training.state.current import State
from hdm.training.state.incidents import MAX_SKIPPED_IN_A_ROW, NOT_FINITE, incident, is_useless
from hdm.training.state.optimizers import Optimizers, rate_factor
from hdm.training.state.technique import Step
from hdm.training.state.trainable import Trainable
from hdm.training.techniques.choose import choose_techniques

LOG_EVERY, LINES_AT_LEAST = 10, 50  # steps a line of metrics.jsonl; fewer where a phase is short


def train(job: Job, stop: StopRequest) -> bool:
    """Train a phase, or make what comes with its weights; True if it is done, False if it was saved
    on a signal.

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
            # Weights that are finished and lost their pictures: those are made, nothing is trained.
            if job.milestones is not None:
                make_companions(job, device)
                return True
            trainer = Trainer(job, stop, device)
            return trainer.run()
    # torch raises a plain RuntimeError if main memory runs out.
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise does_not_fit(job, device, None if trainer is None else trainer.tokens) from error


class Trainer:
    """A phase's training as `run_course` turns it, and its parts.

    Args:
        job: what to train.
        stop: asked after each step.
        device: "cpu" or "cuda".
        make_trainable: what is trained: the whole model, unless another is given.
    """

    def __init__(
        self,
        job: Job,
        stop: StopRequest,
        device: str,
        make_trainable: Callable[[Job, Ranks], Trainable] = assembly.make_trainable,
    ) -> None:
        self.job = job
        self.settings = job.settings.train
        self.phase = job.phase
        self.num_steps = num_steps(self.phase)
        self.num_images = self.num_steps * self.phase.batch_size
        self.ranks = ranks = assembly.make_ranks(job, device, stop)
        trainable = make_trainable(job, ranks)
        conditioning = assembly.make_conditioning(job, ranks.device)
        loader = assembly.training_loader(job, ranks.rank, ranks.count)
        # From here on, an out-of-memory error can give advice.
        self.tokens = assembly.check_fit(job, loader, conditioning)
        objective = assembly.make_objective(job)
        self.grid = Grid(job, trainable.averaged, conditioning, ranks.accelerator.autocast)
        self.measurement = Measurement(conditioning, objective, ranks, self.settings.seed)
        techniques = choose_techniques(
            job, ranks, trainable, self.measurement, self.grid, loader.batch(0)
        )
        # Optimizers come after sharding, which replaces the parameters.
        optimizers = Optimizers(trainable.model, self.phase.optimizer)
        self.state = State(trainable, optimizers, techniques)
        requests = Requests(Path(job.scratch), listens=ranks.first)
        self.checkpoints = Checkpoints(job, ranks, self.state, requests)
        # Before whatever looks at the position: it is then the checkpoint's.
        metrics = self.checkpoints.resume()
        self.logbook = open_logbook(job, ranks, self.state.position, metrics)
        self.duties = Duties(job, ranks, self.checkpoints, requests, self.grid, self.logbook)
        self.prefetcher = assembly.make_prefetcher(job, loader, objective, ranks)
        self.denoising = Denoising(job, ranks, trainable, objective, conditioning, techniques)
        # Kernels come last, since they skip modules that were compiled, wrapped or hooked.
        for model in (trainable.model, trainable.averaged):
            install(model)
        self.explanation = Explanation(self.denoising, self.prefetcher, self.state)

    def run(self) -> bool:
        """Train to the end or to a signal; True if done."""
        self.ranks.stop.defer()  # from here on there is something to save first
        self.explanation.begin()
        if not run_course(self):
            return False
        # Everything is saved: from here on, a signal ends the process at once.
        self.ranks.stop.release()
        exchanged = [technique.finish() for technique in self.state.techniques]
        # The check comes before anything is written, so that useless weights are never committed.
        check_end(
            self.job,
            self.state,
            self.checkpoints,
            self.logbook,
            self.measurement,
            only_weights=any(exchanged),
            explained=self.explanation.of_last,
        )
        if self.ranks.takes_part:
            write_results(self.job, self.state.trainable, self.grid, writes=self.ranks.first)
        self.ranks.wait()
        return True

    @property
    def is_done(self) -> bool:
        return self.state.position.ended or self.state.position.step == self.num_steps

    def serve(self) -> bool:
        self.checkpoints.make_ready()
        return self.duties.fulfil()

    def save(self) -> None:
        self.checkpoints.save(self.logbook.content, wait=True)

    def close(self) -> None:
        self.prefetcher.close()
        self.checkpoints.writer.close()

    def step(self) -> None:
        """One optimizer step, which is skipped if loss or gradient is not finite."""
        state = self.state
        before = self.state.position
        size = self.phase.batch_size
        example = self.prefetcher.example(before.num_images_seen)
        seen = before.num_images_seen + size
        factor = rate_factor(self.phase.optimizer, seen, self.num_images)
        means = self.denoising.backward(example, before)
        parameters = state.trainable.parameters()
        # The log needs norms by tensor; the total, by which gradients are clipped, follows from
        # them.
        norms = gradient_norms(parameters)
        norm = total_norm(list(norms.values()))
        # The step's only wait for the accelerator.
        loss, of_nothing, *terms, norm_value = torch.cat((means, norm[None])).tolist()
        # Before any update: a single step that is not finite would spoil weights and averages.
        is_finite = math.isfinite(loss) and math.isfinite(norm_value)
        if is_finite:
            clip_norm = self.phase.optimizer.clip_norm
            clip_grads_with_norm_(parameters.values(), clip_norm, norm, foreach=True)
            state.optimizers.step(factor)
            for technique in state.techniques:
                technique.update(factor)
            state.trainable.update(before.step)
        self.denoising.module.zero_grad(set_to_none=True)
        counted = loss if is_finite else None
        useless = is_useless(loss, of_nothing)
        # Skipped steps advance the clock too, so training does not meet the same batch again.
        state.position = before.after(size, counted, useless=useless)
        if is_finite:
            state.position = state.position.explaining(size, loss, of_nothing)
        named = dict(zip(self.denoising.weights, terms, strict=True))
        done = Step(before, state.position, example, loss, of_nothing, norm_value, named, is_finite)
        self._look_at(done)
        self.logbook.count(example)
        self._prepare_line(done, factor, norms)

    def _look_at(self, step: Step) -> None:
        """Record what went wrong, and go back to a checkpoint if too much did."""
        state = self.state
        incidents = [] if step.is_finite else [NOT_FINITE]
        for technique in state.techniques:
            incidents += technique.after_step(step)
        for what in incidents:
            noted = incident(what, state.position, step.example, step.loss)
            state.position = state.position.noting(noted)
        if state.position.skipped_in_row == MAX_SKIPPED_IN_A_ROW:
            self.checkpoints.go_back(step)

    def _prepare_line(self, step: Step, factor: float, norms: Mapping[str, Tensor]) -> None:
        """Put the metrics line that is due after this step into the position, so that a checkpoint
        holds it until it is written.
        """
        now = self.state.position
        every = max(1, min(LOG_EVERY, self.num_steps // LINES_AT_LEAST))
        if now.step % every == 0 or now.step == self.num_steps:
            line = step_line(self.state, step.norm, norms, factor)
            now = replace(now, line=line, loss_sum=0.0, loss_count=0, incidents=())
        elif any(technique.due(now) for technique in self.state.techniques):
            now = replace(now, line={})
        self.state.position = now

    def report(self) -> bool:
        """Measure and write what is due after this step; False if a signal interrupted it, in which
        case it is due again after resuming.
        """
        state = self.state
        if state.position.line is None:
            return True
        line: dict[str, Any] = dict(state.position.line)
        measured = dict[str, Any]()
        is_cut = False
        try:
            # All ranks of a sharded model measure together; otherwise only rank 0 measures, and the
            # others wait.
            for technique in state.techniques if self.ranks.takes_part else ():
                measured |= technique.measure(state.position)
        except CutShort:
            is_cut = True
        # A signal may reach ranks at different times; all must leave at the same point.
        if any(self.ranks.agreed(is_cut)):
            return False
        line |= measured
        for technique in state.techniques:
            line |= technique.conclude(state.position, measured)
            if technique.ended:
                state.position = replace(state.position, ended=True)
        self.logbook.add(state, line, self.prefetcher.waited_sec)
        state.position = replace(state.position, line=None)
        return True
