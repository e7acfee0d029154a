"""What the three trainings share: a warm-up and a cosine fall of the rate, clipped gradients, and weights in 16 bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

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

    def __init__(self, model: nn.Module, steps: int, rate: float, muon_rate: float, embeddings: tuple[str, ...] = ()) -> None:
        named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        hidden = [v for name, v in named if v.ndim >= 2 and min(v.shape[:2]) > 1 and not any(part in name for part in embeddings)]
        chosen = {id(value) for value in hidden}
        rest = [value for _, value in named if id(value) not in chosen]
        self.optimizers = [torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0), Muon(hidden, lr=muon_rate)]
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


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal (Muon), at a size that matches AdamW's updates (arXiv 2502.16982, eq. 4).

    torch's own takes no convolutions, and its iterations on the long side cost more here than the small networks' gradients.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape together."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
            for value in group["params"]:
                if value.grad is not None:
                    by_shape.setdefault((len(value), value[0].numel()), []).append((value, value.grad))
            for (rows, columns), values in by_shape.items():
                moved = torch.stack([self._moved(value, gradient, group["momentum"]).reshape(rows, columns) for value, gradient in values])
                size = 0.2 * math.sqrt(max(rows, columns)) * group["lr"]
                for (value, _), update in zip(values, orthogonal(moved), strict=True):
                    value.add_(update.view(value.shape), alpha=-size)

    def _moved(self, value: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        """Nesterov's gradient."""
        average = self.state[value].setdefault("average", torch.zeros_like(value))
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Each of (N, R, C) with its singular values brought near 1.

    Newton–Schulz iterations with Muon's coefficients, carried out on the Gram matrix of the short side: all of its polynomials
    commute, so that X is multiplied once at the end.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT, steps).mT
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    product = torch.eye(x.shape[1]).expand_as(gram)
    for _ in range(steps):
        factor = -4.7750 * gram + 2.0315 * gram @ gram
        factor.diagonal(dim1=1, dim2=2).add_(3.4445)
        product, gram = factor @ product, factor @ gram @ factor
    return product @ x


def halve(model: Any) -> Any:
    """The model with 16-bit weights, as it is written; loaders bring them back to 32."""
    return model.half()
