"""Trainings that run now: how far they are, and what a person asks of them. Light: torch is not
imported.

<scratch>/now-save  now-sample      asked for; the training removes it when it has done it
<output>/samples/00000120.png       pictures that were asked for, by number of steps; in no manifest
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdm.errors import HdmError, InputError
from hdm.store import SCRATCH
from hdm.training.process.job import TIMING, Job, living_ranks, newest_checkpoint, num_steps

SAVE = "save"
SAMPLE = "sample"
SAMPLES = "samples"
POLL_SEC = 0.1


@dataclass(frozen=True)
class Progress:
    """Where a training stands, as it last said.

    Args:
        num_images_seen, num_images: so far and in all.
        images_per_sec: lately.
        loss: lately; None: not finite.
    """

    num_images_seen: int
    num_images: int
    images_per_sec: float
    loss: float | None

    @property
    def seconds_left(self) -> float:
        return (self.num_images - self.num_images_seen) / max(self.images_per_sec, 1e-9)


def trainings(root: Path) -> list[Job]:
    """The phases of a store in which a process trains now."""
    jobs = []
    for path in sorted(root.glob(f"train.*/*/{SCRATCH}/job.json")):
        with contextlib.suppress(HdmError, ValueError):  # it ends just now
            job = Job.read(path)
            if living_ranks(job):
                jobs.append(job)
    return jobs


def progress(job: Job) -> Progress | None:
    """What the last line of timing.jsonl says; None before the first."""
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError, TypeError):
        content = (Path(job.folder) / TIMING).read_bytes()
        # The line after it may be half written.
        last: dict[str, Any] = json.loads(content[: content.rfind(b"\n")].rsplit(b"\n", 1)[-1])
        total = num_steps(job.phase) * job.phase.batch_size
        return Progress(last["num_images_seen"], total, last["images_per_sec"], last["loss"])
    return None


def ask(job: Job, what: str, timeout_sec: float) -> Path:
    """Have a training save or sample after its step, and wait until it has.

    Args:
        what: `SAVE` or `SAMPLE`.

    Returns:
        the newest checkpoint, or the picture.

    Raises:
        InputError: training ended first, or took longer; what was asked for is then forgotten.
    """
    request = _request(Path(job.scratch), what)
    deadline = time.monotonic() + timeout_sec
    # Training looks for this file after each step.
    request.touch()
    while request.exists():
        ended = not living_ranks(job)
        # A request that stays would be obeyed by the next training, for nobody.
        if ended or time.monotonic() > deadline:
            request.unlink(missing_ok=True)
            why = (
                "training ended before it came to it"
                if ended
                else f"nothing came in {timeout_sec:.0f} s"
            )
            raise InputError(why, where=job.log, do="see how far it is with `hdm status`")
        time.sleep(POLL_SEC)
    asked = (
        sorted((Path(job.folder) / SAMPLES).glob("*.png"))
        if what == SAMPLE
        else [newest_checkpoint(Path(job.scratch))]
    )
    # Training removes the request even if it could not fulfil it.
    if not asked or asked[-1] is None:
        raise InputError(f"the training could not {what}", where=job.log, do="its log says why")
    return asked[-1]


class Requests:
    """The training's side: what is asked of it.

    Args:
        scratch: of the job.
        listens: whether this process looks; to any other nothing is asked.
    """

    def __init__(self, scratch: Path, *, listens: bool) -> None:
        self.scratch = scratch
        self.listens = listens

    def wants(self, what: str) -> bool:
        return self.listens and _request(self.scratch, what).exists()

    def done(self, what: str) -> None:
        if self.listens:
            _request(self.scratch, what).unlink(missing_ok=True)


def _request(scratch: Path, what: str) -> Path:
    return scratch / f"now-{what}"
