"""REPA: one block's image tokens, through a small projector, are pulled towards features of a
frozen vision model (arXiv 2410.06940).

The projector is trained beside the model, from new weights in each phase; checkpoints hold it, the
output does not. Shapes: B batch, N image tokens, K of them kept by TREAD, D width of the model, V
of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from hdm.data.batch import Batch
from hdm.models.denoiser import Denoiser
from hdm.training.settings import Optimizer
from hdm.training.state.optimizers import Optimizers
from hdm.training.state.position import Position
from hdm.training.state.technique import Step, Technique

ALIGNMENT = "alignment"
"""The term of the loss, and its name in metrics."""
PROJECTOR = "projector"
PROJECTOR_OPTIMIZER = "projector_optimizer"
"""Sets of tensors in a checkpoint."""


def cosines(projected: Tensor, features: Tensor) -> Tensor:
    """The mean cosine over tokens, in float32: (B, N, V) twice → (B,). A feature of zeros counts as
    0 and pulls nowhere.
    """
    return F.cosine_similarity(projected.float(), features.float(), dim=-1).mean(1)


class Aligned(nn.Module):
    """The denoiser as training calls it, which also says how well a block's tokens fit the
    features.

    Args:
        model: the denoiser.
        block: number of the block, in the order in which they run.
        feature_width: V.
    """

    def __init__(self, model: Denoiser, block: int, feature_width: int) -> None:
        super().__init__()
        width = model.config.width
        hidden = 2 * width  # 2048, as in the paper, where the model is 1024 wide
        self.model = model
        self.block = block
        self.projector = nn.Sequential(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, feature_width),
        )

    def forward(
        self,
        *given: Tensor,
        features: Tensor,
        kept: Tensor | None = None,
        route: tuple[int, int] | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor]:
        """The velocity, and the mean cosine of each sample, (B,).

        Args:
            given, kept, route, more: as for `Denoiser.forward`.
            features: (B, N, V); on TREAD's route those of kept tokens alone are compared.
        """
        states: list[Tensor] = []
        # A hook for this call: it sees what a compiled or recomputed block gives, and whoever calls
        # the model itself pays nothing.
        hook = list(self.model.blocks())[self.block].register_forward_hook(
            lambda _block, _given, state: states.append(state)
        )
        try:
            velocity = self.model(*given, kept=kept, route=route, **more)
        finally:
            hook.remove()
        start, end = self.model.config.tread_route(route)
        if kept is not None and start <= self.block < end:
            # A block on the route has only the kept tokens.
            features = features.take_along_dim(kept[..., None], 1)
        # Text tokens come last.
        return velocity, cosines(self.projector(states[0][:, : features.shape[1]]), features)


class Alignment(Technique):
    """Trains the projector beside the model, and pulls the model towards the features.

    Args:
        model, block, feature_width: as for `Aligned`.
        weight: of the pull.
        settings: of the phase's optimizer; the projector's gradient is clipped by itself.
        seed: of its first weights.

    Its state: `cosine_sum`, of the steps since the last line of metrics.
    """

    def __init__(
        self,
        model: Denoiser,
        block: int,
        feature_width: int,
        weight: float,
        settings: Optimizer,
        seed: int,
    ) -> None:
        # The weight is negative, since the similarity should grow.
        self.weights = {ALIGNMENT: -weight}
        self.settings = settings
        self.cosine_sum = 0.0
        # fork_rng leaves torch's own generator as it was, with or without a projector.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.aligned = Aligned(model, block, feature_width)
        # Only the projector moves: the model is on its device already, and may be sharded.
        self.aligned.projector.to(next(model.parameters()).device)
        self.optimizers = Optimizers(self.aligned.projector, settings)

    def wrap(self, model: nn.Module) -> nn.Module:
        return self.aligned

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None
        return {"features": batch.features}

    def update(self, factor: float) -> None:
        # The projector is clipped by itself, so that neither its gradients nor the model's shrink
        # the other's.
        clip_grad_norm_(self.aligned.projector.parameters(), self.settings.clip_norm)
        self.optimizers.step(factor)

    def after_step(self, step: Step) -> list[str]:
        if step.is_finite:
            self.cosine_sum += step.terms[ALIGNMENT]
        return []

    def line(self, now: Position) -> dict[str, Any]:
        mean = self.cosine_sum / max(now.loss_count, 1)
        self.cosine_sum = 0.0
        return {ALIGNMENT: mean}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            PROJECTOR: self.aligned.projector.state_dict(),
            PROJECTOR_OPTIMIZER: self.optimizers.tensors(),
        }

    def load(self, tensors: Callable[[str], Mapping[str, Tensor]]) -> None:
        self.aligned.projector.load_state_dict(tensors(PROJECTOR))
        self.optimizers.load(tensors(PROJECTOR_OPTIMIZER))

    def state(self) -> dict[str, Any]:
        return {"cosine_sum": self.cosine_sum}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.cosine_sum = state.get("cosine_sum", 0.0)
