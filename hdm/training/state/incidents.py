"""Steps that went wrong: how they are written down, said aloud, and when they end a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hdm.errors import HdmError
from hdm.training.prefetcher import Example
from hdm.training.process.job import Job, checkpoint_step
from hdm.training.state.checkpoint import Checkpoint
from hdm.training.state.position import LATELY, Position

NOT_FINITE = "not finite"
SPIKE = "loss spike"
WENT_BACK = "went back"
MAX_SKIPPED_IN_A_ROW = 10
KEYS_NOTED = 64
KEYS_SAID = 8
USELESS = 1.5
"""Times the loss of predicting no velocity at all, at pictures that are trained on. Untrained
weights predict next to nothing and have that loss; those that get the noise right and take the
picture for another one have no more, of latents with the usual variance of 1.
"""

# Shares of the target that weights explain. A training that never reached KNOWN has too little to
# lose; weights that explain less than FORGOTTEN times the best have lost it.
KNOWN = 0.25
FORGOTTEN = 0.5


def is_useless(loss: float | None, of_nothing: float) -> bool:
    """Whether a loss is that of weights that are worth nothing.

    Args:
        loss: of the velocity; None: it is not finite.
        of_nothing: what it would be if no velocity at all were predicted for the same examples.
    """
    # `not <=` instead of `>` makes NaN useless too.
    return loss is None or not loss <= USELESS * of_nothing


def incident(what: str, now: Position, example: Example, loss: float) -> dict[str, Any]:
    """A record for the next line of metrics: what happened in the step that led to `now`, and with
    which pictures.

    Which batch it was follows from `num_images_seen`; `keys` are of this process's share, at most
    64.
    """
    return {
        "what": what,
        "step": now.step,
        "num_images_seen": now.num_images_seen,
        "loss": loss if math.isfinite(loss) else None,
        # Keys are read from the files, so only a few are.
        "keys": list(example.batch.keys[:KEYS_NOTED]),
    }


def hopeless(
    now: Position, example: Example, loss: float, norm: float, job: Job, good: Checkpoint | None
) -> HdmError:
    """The error that ends a training whose steps are all skipped; `good` is its last good
    checkpoint.
    """
    batch_size = job.phase.batch_size
    seen = now.num_images_seen
    keys = ", ".join(example.batch.keys[:KEYS_SAID])
    tried = "; going back to a checkpoint had not helped" if now.gone_back else ""
    return HdmError(
        f"{MAX_SKIPPED_IN_A_ROW} steps in a row had no finite loss or gradient (loss {loss},"
        f" gradient norm {norm}), {now.skipped} in all; the last one is step {now.step}, images"
        f" {seen - batch_size} to {seen}, pictures {keys}, …{tried}",
        where=f"train.{job.phase.name}",
        do=(
            "look at the latents of these pictures (`incidents` in metrics.jsonl names all), or"
            f" {_calmer(job, good)}"
        ),
    )


def signs_of_explosion(now: Position) -> list[str]:
    """What the last steps of a training say, if they went wrong."""
    if not now.exploded:
        return []
    last = min(LATELY, now.step)
    kinds = (
        (now.skipped_lately, "no finite loss or gradient"),
        (now.useless_lately, f"more than {USELESS} times the loss of predicting nothing"),
    )
    return [f"{len(steps)} of its last {last} steps had {what}" for steps, what in kinds if steps]


def forgotten(most: float | None, now: float) -> list[str]:
    """What weights say that explained much once and explain little now, as after an explosion that
    fell back to predicting nothing.

    Both shares are of training batches, at the training's own times, tokens and dropout. So
    pictures learned by heart, another resolution and other pictures change neither; little that was
    ever known, as in a short training, says nothing.

    Args:
        most: that training explained at any time, or the weights that it began with.
        now: that the last weights explain.
    """
    if most is None or most < KNOWN or now > FORGOTTEN * most:
        return []
    return [
        f"its last weights explain {max(now, 0):.0%} of what they are trained to predict, where"
        f" {most:.0%} was explained before"
    ]


def exploded(signs: Sequence[str], job: Job, good: Checkpoint | None) -> HdmError:
    """The error that ends a training whose weights are worth nothing.

    Args:
        signs: what shows it.
        job: what was trained.
        good: its last good checkpoint.
    """
    return HdmError(
        f"training exploded before its end: {', '.join(signs)}; nothing was committed",
        where=f"train.{job.phase.name}",
        do=_calmer(job, good),
    )


def _calmer(job: Job, good: Checkpoint | None) -> str:
    """What to do about a training whose losses are not finite."""
    field = f"train.phases.{job.number}"
    rate = f"{field}.optimizer.learning_rate"
    lower = f"lower {rate} or {field}.optimizer.clip_norm"
    if good is None:
        return f"{lower} and run it anew: there is no good checkpoint to go on from"
    origin = f"{job.digest}@{checkpoint_step(good.path)}"
    return (
        f"{lower}; then it starts anew, or goes on from its last good checkpoint, step"
        f" {checkpoint_step(good.path)} ({good.path}), with --set {field}.resume_from={origin}"
        f" --set '{field}.resume_allow=[\"{rate}\"]'"
    )
