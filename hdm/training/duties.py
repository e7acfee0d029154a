"""What time, people and signals ask of a training between two steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from hdm.errors import HdmError
from hdm.training.measures.logbook import Logbook
from hdm.training.measures.sample_grid import Grid
from hdm.training.process.job import Job
from hdm.training.process.ranks import CutShort, Ranks
from hdm.training.process.running import SAMPLE, SAMPLES, SAVE, Requests
from hdm.training.state.checkpoints import Checkpoints

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Duties:
    """Checkpoints and pictures between steps, and the end on a signal.

    Args:
        job: what is trained.
        ranks: agree on what is due.
        checkpoints: take them.
        requests: what people ask for.
        grid: makes pictures.
        logbook: its metrics go into checkpoints.
    """

    job: Job
    ranks: Ranks
    checkpoints: Checkpoints
    requests: Requests
    grid: Grid
    logbook: Logbook

    def fulfil(self) -> bool:
        """Save and sample as asked; whether training stops here, saved."""
        asked = self.requests.wants(SAVE)
        # One exchange settles all three: signals and clocks differ between processes, which have to
        # act alike.
        stopping, saving, sampling = self.ranks.agreed(
            self.ranks.stop.requested,
            asked or self.checkpoints.due,
            self.requests.wants(SAMPLE),
        )
        # If a checkpoint could not be written, training ends now and not at the next one.
        self.checkpoints.writer.check()
        if stopping or saving or sampling:
            # Whoever asked for the file will be shown its path, and a process that stops takes the
            # writing thread with it: both wait until it is on disk.
            self.checkpoints.save(self.logbook.content, wait=stopping or asked)
        if sampling and not stopping:
            self._sample()
        return stopping

    def _sample(self) -> None:
        """Pictures of the averaged weights as they are now."""
        if self.ranks.takes_part:
            step = self.checkpoints.state.position.step
            path = Path(self.job.folder) / SAMPLES / f"{step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            try:
                # All ranks of a sharded model take part in sampling; the first one writes the file.
                self.grid.write(path if self.ranks.first else None, self.ranks.interrupted)
            except CutShort:
                pass
            except HdmError as error:  # nobody loses a training to a wish
                log.warning("no pictures were made: %s", error)
        # The request is done even if it failed, or it would be tried again after every step.
        self.requests.done(SAMPLE)
        self.ranks.wait()
