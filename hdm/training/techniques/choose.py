"""Which techniques a job's settings ask for."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from hdm.chance import seed_at
from hdm.data.batch import Batch
from hdm.training import assembly
from hdm.training.measures.sample_grid import Grid
from hdm.training.measures.validation import BATCH_SIZE, Measurement
from hdm.training.prefetcher import PROJECTION
from hdm.training.process.job import Job, num_steps
from hdm.training.process.ranks import Ranks
from hdm.training.state.milestones import Milestones, even_steps
from hdm.training.state.technique import Technique
from hdm.training.state.trainable import Trainable
from hdm.training.techniques.alignment import Alignment
from hdm.training.techniques.best import Best, BestSoFar
from hdm.training.techniques.dropout import DropoutSeeds
from hdm.training.techniques.generated import GeneratedPictures
from hdm.training.techniques.held_out import HeldOut
from hdm.training.techniques.power_tracks import PowerEma
from hdm.training.techniques.spikes import SpikeGuard


def choose_techniques(
    job: Job,
    ranks: Ranks,
    trainable: Trainable,
    measurement: Measurement,
    grid: Grid,
    batch: Batch,
) -> list[Technique]:
    """The techniques of a training, in the order in which they are called: what measures before
    what goes by it.

    Args:
        job: what is trained.
        ranks, trainable, measurement, grid: what techniques work with.
        batch: any, which tells how wide features are.

    Raises:
        InputError: no pictures are held out, and something goes by their loss.
    """
    settings = job.settings.train
    phase = job.phase
    milestones = Milestones(Path(job.scratch))
    steps = num_steps(phase)
    # The guard is always on; settings ask for the other techniques.
    techniques: list[Technique] = [SpikeGuard(phase.batch_size, warns=ranks.first)]
    if settings.dropout or (phase.adapter is not None and phase.adapter.draws):
        techniques.append(DropoutSeeds(settings.seed))
    # The loader reads features only if `align_weight` is set.
    if batch.features is not None:
        seed = seed_at(settings.seed, PROJECTION, job.number)
        block = settings.aligned_block
        width = batch.features.shape[-1]
        weight = settings.align_weight
        optimizer = phase.optimizer
        techniques.append(Alignment(trainable.model, block, width, weight, optimizer, seed))
    # The loader is opened when it is first needed, and then kept.
    loader = cache(partial(assembly.measured_loader, job, "validation", BATCH_SIZE))
    every = settings.validate_every
    raw = settings.validate_raw
    held_out = HeldOut(measurement, trainable, loader, every, steps, raw=raw)
    techniques.append(held_out)
    if settings.watches:
        files = Best(Path(job.scratch), trainable) if settings.keep == "best" else None
        techniques.append(BestSoFar(held_out, settings.watch, files, settings.patience, ranks))
    if settings.generate_every is not None:
        every = settings.generate_every
        size = phase.batch_size
        techniques.append(GeneratedPictures(grid, milestones, ranks, every, size))
    if settings.ema_lengths:
        techniques.append(
            PowerEma(
                trainable.parameters(),
                settings.ema_lengths,
                milestones,
                even_steps(steps, settings.ema_snapshots),
                writes=ranks.first,
                takes_part=ranks.takes_part,
            )
        )
    return techniques
