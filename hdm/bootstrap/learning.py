"""What the three trainings share: a warm-up and a cosine fall of the rate, clipped gradients, and weights in 16 bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hdm.errors import HdmError
from hdm.muon import Muon
from hdm.sharding import finite

WARMUP = 0.03
FINAL_RATE = 0.02


class Trainer:
    """Muon for matrices and convolutions, AdamW for the rest; the rate rises over 3 % of the steps, then falls along a cosine to 2 %.

    Args:
        model: what is trained.
        steps: how many there will be.
        rate: AdamW's.
        muon_rate: Muon's, in AdamW's units.
        embeddings: parts of the names of matrices that AdamW takes all the same.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        rate: float,
        muon_rate: float,
        embeddings: tuple[str, ...] = (),
    ) -> None:
        named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        hidden = [
            v
            for name, v in named
            if v.ndim >= 2 and min(v.shape[:2]) > 1 and not any(part in name for part in embeddings)
        ]
        chosen = {id(value) for value in hidden}
        rest = [value for _, value in named if id(value) not in chosen]
        self.optimizers = [
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
            Muon(hidden, lr=muon_rate, size="adamw"),
        ]
        self.parameters, self.steps = [value for _, value in named], steps
        self.rates = [rate, muon_rate]

    def share(self, step: int) -> float:
        """Of the full rate, in (0, 1]."""
        rising = (step + 1) / max(1.0, WARMUP * self.steps)
        falling = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1.0, rising) * falling

    def step(self, step: int, loss: Tensor) -> None:
        """One update; gradients are clipped to a norm of 1."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.share(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def halve(model: Any) -> Any:
    """The model with 16-bit weights, as it is written; loaders bring them back to 32.

    Raises:
        HdmError: training exploded, or weights are too large for 16 bits.
    """
    halved = model.half()
    if not finite(halved.state_dict()):
        raise HdmError(
            f"training exploded: weights of {type(model).__name__} are not finite in 16 bits",
            do="try another --seed, or more --minutes",
        )
    return halved
