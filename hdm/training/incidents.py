"""Steps that went wrong: how they are written down, said aloud, and when they end a training."""

from __future__ import annotations

import math
from typing import Any

from hdm.errors import HdmError
from hdm.training.feed import Example
from hdm.training.position import Position

NOT_FINITE, SPIKE, WENT_BACK = "not finite", "loss spike", "went back"
MAX_SKIPPED_IN_A_ROW = 10
KEYS_NOTED, KEYS_SAID = 64, 8


def incident(what: str, now: Position, example: Example, loss: float) -> dict[str, Any]:
    """A record for the next line of metrics: what happened in the step that led to `now`, and with which pictures.

    Which batch it was follows from `num_images_seen`; `keys` are of this process's share, at most 64.
    """
    return {
        "what": what,
        "step": now.step,
        "num_images_seen": now.num_images_seen,
        "loss": loss if math.isfinite(loss) else None,
        "keys": list(example.batch.keys[:KEYS_NOTED]),
    }


def spike_warning(now: Position, loss: float, batch_size: int) -> str:
    """One line for whoever watches."""
    seen, usual = now.num_images_seen, math.exp(now.loss_level)
    return f"step {now.step} has a loss of {loss:.4g} where {usual:.4g} is usual: images {seen - batch_size} to {seen}"


def hopeless(
    now: Position, example: Example, loss: float, norm: float, batch_size: int, where: str
) -> HdmError:
    """The error that ends a training whose steps are all skipped."""
    seen, keys = now.num_images_seen, ", ".join(example.batch.keys[:KEYS_SAID])
    tried = "; going back to a checkpoint had not helped" if now.gone_back else ""
    return HdmError(
        f"{MAX_SKIPPED_IN_A_ROW} steps in a row had no finite loss or gradient (loss {loss}, gradient norm {norm}), {now.skipped} in all; "
        f"the last one is step {now.step}, images {seen - batch_size} to {seen}, pictures {keys}, …{tried}",
        where=where,
        do="lower the learning rate or clip_norm, or look at the latents of these pictures; `incidents` in metrics.jsonl names all",
    )
