"""Loss and gradients of a step: noisy latents in, the objective's target out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from hdm.generation.conditioning import Conditioning
from hdm.training import assembly
from hdm.training.objective import Objective
from hdm.training.prefetcher import Example
from hdm.training.process.job import Job
from hdm.training.process.ranks import Ranks
from hdm.training.state.position import Position
from hdm.training.state.technique import Technique
from hdm.training.state.trainable import Trainable


class Denoising:
    """What a process computes of a step.

    Args:
        job: what is trained.
        ranks: share each batch.
        trainable: gets the gradients.
        objective: what it learns.
        conditioning: of the captions.
        techniques: may wrap the model and add terms to the loss.
    """

    def __init__(
        self,
        job: Job,
        ranks: Ranks,
        trainable: Trainable,
        objective: Objective,
        conditioning: Conditioning,
        techniques: Sequence[Technique],
    ) -> None:
        self.phase = job.phase
        self.ranks = ranks
        self.objective = objective
        self.conditioning = conditioning
        self.techniques = techniques
        self.weights: dict[str, float] = {}
        wrapped: nn.Module = trainable.model
        for technique in techniques:
            # Wrapped models return their terms in this order, so the weights follow it.
            wrapped = technique.wrap(wrapped)
            self.weights |= technique.weights
        # DDP wraps the outermost module, so that it also exchanges the gradients of what techniques
        # add.
        self.module = assembly.prepared(job, trainable.model, wrapped, ranks.accelerator)

    def backward(self, example: Example, now: Position) -> Tensor:
        """Add up the gradients of this process's share.

        Returns:
            Means over the global batch, on the device: the loss, that of predicting zeros, and the
            techniques' terms.
        """
        count = self.ranks.count
        total = self._zeros()
        for part, is_last in self._micro_batches(example, now):
            with self._synchronising(is_last=is_last):
                loss, of_nothing, *terms = self.losses(part)
                # Techniques change what is minimised; the loss that is reported stays the
                # objective's own.
                lowered = loss
                for weight, term in zip(self.weights.values(), terms, strict=True):
                    lowered = lowered + weight * term
                # DDP takes the mean over processes, whose shares may differ by one: weigh by the
                # global batch.
                self.ranks.accelerator.backward(lowered * (count / self.phase.batch_size))
            # Sums stay on the device: reading them here would wait for it after every micro-batch.
            total += torch.stack((loss, of_nothing, *terms)).detach()
        return self._mean(total)

    @torch.no_grad()
    def look(self, example: Example, now: Position) -> Tensor:
        """Loss and that of predicting zeros, (2,), as `backward` has them, without gradients."""
        total = self._zeros()
        for part, _ in self._micro_batches(example, now):
            total += torch.stack(self.losses(part))
        return self._mean(total)[:2]

    def _zeros(self) -> Tensor:
        return torch.zeros(2 + len(self.weights), device=self.ranks.device)

    def _micro_batches(self, example: Example, now: Position) -> Iterator[tuple[Example, bool]]:
        """The parts of this process's share on its device, and whether each is the last."""
        share = len(example.batch)
        # Micro-batches change the result by rounding only, so they are in no digest.
        size = self.phase.micro_batch or len(example.batch)
        # Dropout's seeds depend on a sample's number in the global batch.
        begun = self.phase.batch_size * self.ranks.rank // self.ranks.count
        for start in range(0, share, size):
            for technique in self.techniques:
                technique.before_micro_batch(now, begun + start)
            part = example.part(start, start + size).to(self.ranks.device)
            yield part, start + size >= share

    def _mean(self, total: Tensor) -> Tensor:
        """Over the global batch, of sums over this process's share."""
        if self.ranks.count > 1:
            total = self.ranks.accelerator.reduce(total, "sum")
        return total / self.phase.batch_size

    def losses(self, part: Example) -> tuple[Tensor, ...]:
        """Sums over the samples: the loss, that of predicting zeros, and the techniques' terms."""
        batch = part.batch
        inputs = dict[str, Tensor]()
        for technique in self.techniques:
            inputs |= technique.inputs(batch)
        # Only the network runs under autocast: target and losses below are float32.
        with self.ranks.accelerator.autocast():
            output = self.module(
                self.objective.noisy(batch.latent, part.noise, part.timestep),
                part.timestep,
                self.conditioning.of_batch(batch),
                positions=batch.positions,
                log_aspect=batch.log_aspect,
                text_mask=batch.text_mask,
                kept=part.kept,
                route=self.phase.tread_route,
                **inputs,
            )
        # A technique that wraps the denoiser returns its terms beside the prediction.
        predicted, *terms = output if isinstance(output, tuple) else (output,)
        target = self.objective.target(batch.latent, part.noise, part.timestep)
        loss = self.objective.losses(predicted, target, part.timestep)
        # Losses at different times and latents do not compare, so both are measured on the same
        # examples.
        of_nothing = self.objective.losses(torch.zeros_like(target), target, part.timestep)
        return (loss.sum(), of_nothing.sum(), *(term.sum() for term in terms))

    def _synchronising(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Exchange gradients after the last micro-batch alone.

        Gradients that wait for it are whole ones: of a sharded model each micro-batch's are spread
        at once.
        """
        if is_last or self.ranks.sharded:
            return contextlib.nullcontext()
        without_exchange: AbstractContextManager[None] = self.ranks.accelerator.no_sync(self.module)
        return without_exchange
