"""The checkpoints of a training: when one is due, what it says, and which one training goes on
from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdm.errors import ConfigError
from hdm.sharding import finite
from hdm.training.process.job import Job
from hdm.training.process.origin import origin_folder
from hdm.training.process.ranks import Ranks
from hdm.training.process.running import SAVE, Requests
from hdm.training.state import checkpoint
from hdm.training.state.checkpoint import Checkpoint
from hdm.training.state.checkpoint_writer import CheckpointWriter
from hdm.training.state.current import State
from hdm.training.state.incidents import MAX_SKIPPED_IN_A_ROW, WENT_BACK, hopeless, incident
from hdm.training.state.technique import Step

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores a training state.

    Args:
        job: what is trained.
        ranks: rank 0 writes, all read.
        state: what is saved.
        requests: answered when a checkpoint that was asked for is on disk.
    """

    def __init__(self, job: Job, ranks: Ranks, state: State, requests: Requests) -> None:
        self.job = job
        self.ranks = ranks
        self.state = state
        self.requests = requests
        self.folder = Path(job.scratch)
        self.writer = CheckpointWriter(self.folder)
        self.saved_step = -1
        self.saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is older than `checkpoint_sec`."""
        return time.monotonic() - self.saved_at > self.job.settings.train.checkpoint_sec

    def make_ready(self) -> None:
        """Memory for checkpoints, once the optimizers have had a step that was not skipped."""
        # A sharded model needs no buffers: its tensors are gathered into copies anyway.
        is_wanted = self.ranks.first and not self.ranks.sharded and not self.writer.ready
        if is_wanted and self.state.position.loss_count:
            self.writer.make_ready(self.state.tensors())

    def save(self, metrics: bytes, *, wait: bool) -> None:
        """Save a checkpoint unless there is one of this step; wait until it is on disk, or let
        training continue meanwhile.
        """
        step = self.state.position.step
        # If a timed checkpoint and a signal come after the same step, it is saved once.
        if step != self.saved_step and self.ranks.takes_part:
            tensors = self.state.tensors()
            if self.ranks.first:
                content = self._content(tensors)
                # Techniques are asked now: they will have moved on when the file is there.
                then = self._then()
                self.writer.write(step, tensors, metrics, content, then, copied=self.ranks.sharded)
        if wait:
            self.writer.wait()
            self.requests.done(SAVE)
        # All ranks record it, so that they agree on what is due.
        self.saved_step = step
        self.saved_at = time.monotonic()

    def _content(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
        return {
            "digest": self.job.digest,
            "identity": self.job.identity,
            "made_by": {"hdm-pipeline": version("hdm-pipeline"), "torch": torch.__version__},
            "good": self._is_good(tensors),
            "position": self.state.values(),
        }

    def _is_good(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> bool:
        """Whether training may go back to a checkpoint of these tensors."""
        now = self.state.position
        # Finite weights may still be spoiled, which a lost step right before them indicates.
        return not now.lost_in_row and not now.exploded and all(map(finite, tensors.values()))

    def _then(self) -> Callable[[], None]:
        """What the techniques do once it is on disk."""
        steps = [technique.on_saved() for technique in self.state.techniques]

        def run() -> None:
            for step in steps:
                step()

        return run

    def resume(self) -> bytes:
        """Restore the newest intact checkpoint, or else the one that `resume_from` names; returns
        the metrics so far.
        """
        # Rank 0 sets damaged checkpoints aside; the others then see what is left.
        with self.ranks.accelerator.main_process_first():
            saved = checkpoint.newest(self.folder)
        if saved is not None:
            self._check_same_run(saved)
            self.state.restore(saved)
            self.saved_step = self.state.position.step
            return saved.metrics
        origin = origin_folder(self.job)
        if origin is None:
            return b""
        # The folder belongs to another training, so nothing in it is set aside.
        saved = checkpoint.read(origin)
        self.state.adopt(saved, self.job.phase.batch_size)
        return saved.metrics

    def go_back(self, step: Step) -> None:
        """Restore the weights of the last good checkpoint and continue with the batches that come
        next; the second time, end.

        The batches between, good or bad, are not seen: the same ones on the same weights would lead
        here again (as PaLM was trained, arXiv 2204.02311, section 5.1). Which checkpoint is the
        last one depends on when they were made.

        Raises:
            HdmError: there is none, or training went back before.
        """
        self.writer.wait()
        saved = self.last_good()
        now = self.state.position
        if saved is None or now.gone_back:
            raise hopeless(now, step.example, step.loss, step.norm, self.job, saved)
        # Only weights and optimizers go back; position and clock continue.
        self.state.load_tensors(saved)
        now = replace(now, skipped_in_row=0, gone_back=1)
        self.state.position = now.noting(incident(WENT_BACK, now, step.example, step.loss))
        if self.ranks.first:
            log.warning(
                "%d steps in a row were not finite: back to the weights of step %d",
                *(MAX_SKIPPED_IN_A_ROW, saved.state["position"]["step"]),
            )

    def last_good(self, *, ended: bool = False) -> Checkpoint | None:
        """The newest checkpoint worth going back to; `ended`: the one of the last step is not."""

        def is_wanted(state: Mapping[str, Any]) -> bool:
            at_end = ended and state["position"]["step"] == self.state.position.step
            return state.get("good", True) and not at_end

        # Rank 0 sets damaged checkpoints aside; the others then see what is left.
        with self.ranks.accelerator.main_process_first():
            return checkpoint.newest(self.folder, is_wanted)

    def _check_same_run(self, saved: Checkpoint) -> None:
        made_with = saved.state.get("made_by", {}).get("torch", torch.__version__)
        if made_with != torch.__version__ and self.ranks.first:
            log.warning(
                "the checkpoint was made with torch %s, this is %s: what comes is not bit for bit"
                " the same",
                *(made_with, torch.__version__),
            )
        if saved.state["digest"] != self.job.digest:
            old = saved.state["identity"]
            now = self.job.identity
            changed = sorted(key for key, value in now.items() if old.get(key) != value)
            raise ConfigError(
                f"the checkpoint is of another configuration: {', '.join(changed)} changed",
                where=saved.path,
                do="undo the change, or remove the checkpoint",
            )
