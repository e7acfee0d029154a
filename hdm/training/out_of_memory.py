"""The error for a step that did not fit: how much memory was in use, and what would fit according
to the formulas of `memory`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hdm.errors import DoesNotFitError
from hdm.training.measures.memory import training_memory
from hdm.training.process.job import Job
from hdm.training.process.memory_use import peak_memory_bytes, system_memory_bytes
from hdm.training.settings import Phase, TrainSettings

SHARE = 0.9
"""Of the device's memory that a step may fill: the rest is the allocator's and the libraries'."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is that of an allocator: the accelerator's, the CPU's (which has no class of
    its own), or Python's.
    """
    # torch raises a plain RuntimeError if main memory runs out.
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "DefaultCPUAllocator: can't allocate memory" in str(error)


@dataclass(frozen=True)
class Advice:
    """What would fit.

    Args:
        settings, phase: of the training.
        tokens: of the image and of the text, of a sample.
        on_cpu: whether on a CPU.
        room: bytes of the device.
    """

    settings: TrainSettings
    phase: Phase
    tokens: tuple[int, int]
    on_cpu: bool
    room: float

    @property
    def micro_batch(self) -> int:
        """That was tried."""
        return training_memory(self.settings, self.phase, self.tokens, self.on_cpu).micro_batch

    def largest(self, checkpoint_blocks: float) -> int:
        """Micro-batch that fits with that share of the blocks recomputed, smaller than the one that
        did not; 0 if none does.
        """
        phase = self.phase.model_copy(update={"checkpoint_blocks": checkpoint_blocks})
        fits = training_memory(self.settings, phase, self.tokens, self.on_cpu).largest_micro_batch(
            SHARE * self.room
        )
        # The formula may claim that the batch which failed would fit, so at most half of it is
        # advised.
        as_it_is = checkpoint_blocks == self.phase.checkpoint_blocks
        return min(fits, self.micro_batch // 2 if as_it_is else self.micro_batch)

    def __str__(self) -> str:
        ways = []
        # Advise a batch for the present share of recomputed blocks, and one for all of them.
        for share in sorted({self.phase.checkpoint_blocks, 1.0}):
            count = self.largest(share)
            if count:
                changed = share != self.phase.checkpoint_blocks
                more = f" with checkpoint_blocks: {share}" if changed else ""
                ways.append(f"micro_batch: {count}{more}")
        if not ways:
            return (
                "even a micro-batch of 1 is estimated not to fit: use a smaller model, or"
                " train.sharding: full over several devices"
            )
        return (
            f"set {', or '.join(ways)} (estimated for {self.room / 1e9:.1f} GB; the result is the"
            " same up to rounding)"
        )


def does_not_fit(job: Job, device: str, tokens: tuple[int, int] | None) -> DoesNotFitError:
    """The error that ends a phase.

    Args:
        job: the training.
        device: "cpu" or of CUDA.
        tokens: of the image and of the text, of a sample; None: memory ended before there were any,
            with the model itself.
    """
    where = f"train.phases.{job.number}"
    used = f"at most {peak_memory_bytes() / 1e9:.1f} GB were in use"
    if tokens is None:
        do = (
            "take a smaller model or fewer ema_lengths, or train.sharding: full over several"
            " devices"
        )
        return DoesNotFitError(
            f"memory does not hold the model and its averages; {used}", where=where, do=do
        )
    advice = Advice(job.settings.train, job.phase, tokens, device == "cpu", _device_bytes(device))
    return DoesNotFitError(
        f"memory does not hold a step with micro_batch {advice.micro_batch}; {used}",
        where=where,
        do=str(advice),
    )


def _device_bytes(device: str) -> float:
    """Memory of the accelerator, or of the computer; where that is not known, what was in use,
    which was too little.
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return system_memory_bytes("MemTotal") or peak_memory_bytes()
