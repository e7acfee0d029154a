"""Checkpoints written while training goes on: a step waits for a copy in memory, a thread does the
rest.

The copy lies in buffers that are made once, pinned where training is on an accelerator. One
checkpoint at a time is written; the next one waits for it. However the process dies, what was
written before is as `checkpoint.save` left it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdm.training.process.memory_use import system_memory_bytes
from hdm.training.process.threads import compute_with_one_thread_here
from hdm.training.state import checkpoint

Sets = Mapping[str, Mapping[str, Tensor]]
Buffers = dict[str, dict[str, Tensor]]
SPARED = 1 << 30  # bytes of memory that stay free

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes the checkpoints of one training process in a thread.

    Args:
        folder: where checkpoints lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, "checkpoint", compute_with_one_thread_here)
        self._under_way: Future[None] | None = None
        self._buffers: Future[Buffers | None] | None = None

    def make_ready(self, tensors: Sets) -> None:
        """Allocate the buffers in the thread, because new memory takes longer than a copy. Call it
        once the optimizers have their state.
        """
        self._buffers = self._thread.submit(_buffers, tensors)

    @property
    def ready(self) -> bool:
        """Whether the buffers are made, or being made."""
        return self._buffers is not None

    def write(
        self,
        step: int,
        tensors: Sets,
        metrics: bytes,
        state: Mapping[str, Any],
        then: Callable[[], None],
        *,
        copied: bool = False,
    ) -> None:
        """Copy what a checkpoint holds and have it written; the arguments are `checkpoint.save`'s.

        Without buffers, before `make_ready` or for want of memory, it waits until all is written.

        Args:
            then: called in the thread when it is there.
            copied: the tensors are copies already, which nobody changes.

        Raises:
            DoesNotFitError, HdmError: this one, or the one before, could not be written.
        """
        self.wait()  # one at a time: the buffers hold the one before until it is written
        buffers = self._buffers.result() if self._buffers is not None and not copied else None
        # A step waits 0.14 s for the copy, instead of 1.77 s for the file (1.38 GB,
        # bench/RESULTS.md).
        taken = tensors if buffers is None else _copied(tensors, buffers)
        save = partial(checkpoint.save, self.folder, step, taken, metrics, state)
        self._under_way = self._thread.submit(_one_after_other, save, then)
        if buffers is None and not copied:
            self.wait()

    def check(self) -> None:
        """Raise the thread's error, if it is done and failed."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            DoesNotFitError, HdmError: it could not be written.
        """
        under_way = self._under_way
        # The future is dropped before `result`, so that its error is raised only once.
        self._under_way = None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """End the thread, when it has written what it has."""
        self._thread.shutdown(wait=True)


def _one_after_other(first: Callable[[], object], then: Callable[[], None]) -> None:
    first()
    then()


def _buffers(tensors: Sets) -> Buffers | None:
    """Memory of the tensors' shapes, written to so that it is there; None where it would not be."""
    needed = sum(value.nbytes for values in tensors.values() for value in values.values())
    free = system_memory_bytes("MemAvailable")
    if free is not None and needed + SPARED > free:
        log.warning(
            "training waits while checkpoints are written: a copy to write from takes %.1f GB, and"
            " %.1f GB of memory are free",
            *(needed / 1e9, free / 1e9),
        )
        return None
    buffers: Buffers = {}
    for name, values in tensors.items():
        buffers[name] = {key: _buffer(value) for key, value in values.items()}
    return buffers


def _buffer(value: Tensor) -> Tensor:
    # The system maps memory when it is first written to; zeroing moves that out of the step. Copies
    # to pinned memory do not block the CPU.
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda).zero_()


def _copied(tensors: Sets, buffers: Buffers) -> Sets:
    """The tensors as they are now. An optimizer may have states that it had not when the buffers
    were made.
    """
    for name, values in tensors.items():
        for key, value in values.items():
            if key not in buffers[name]:
                buffers[name][key] = _buffer(value)
            # Copies from an accelerator are asynchronous: training may change the tensors only
            # after the synchronization below.
            buffers[name][key].copy_(value.detach(), non_blocking=True)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return buffers
