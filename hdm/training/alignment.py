"""REPA: one block's image tokens, through a small projector, are pulled towards features of a frozen vision model (arXiv 2410.06940).

The projector is trained beside the model, from new weights in each phase; checkpoints hold it, the output does not.
Shapes: B batch, N image tokens, K of them kept by TREAD, D width of the model, V of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from hdm.config import Optimizer
from hdm.models.denoiser import Denoiser
from hdm.training.optimizers import Optimizers

PROJECTOR, PROJECTOR_OPTIMIZER = "projector", "projector_optimizer"
"""Sets of tensors in a checkpoint."""


def cosines(projected: Tensor, features: Tensor) -> Tensor:
    """The mean cosine over tokens, in float32: (B, N, V) twice → (B,). A feature of zeros counts as 0 and pulls nowhere."""
    return F.cosine_similarity(projected.float(), features.float(), dim=-1).mean(1)


class Aligned(nn.Module):
    """The denoiser as training calls it, which also says how well a block's tokens fit the features.

    Args:
        model: the denoiser.
        block: number of the block, in the order in which they run.
        feature_width: V.
    """

    def __init__(self, model: Denoiser, block: int, feature_width: int) -> None:
        super().__init__()
        width, hidden = (
            model.config.width,
            2 * model.config.width,
        )  # 2048, as in the paper, where the model is 1024 wide
        self.model, self.block = model, block
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
        # A hook for this call: it sees what a compiled or recomputed block gives, and whoever calls the model itself pays nothing.
        hook = list(self.model.blocks())[self.block].register_forward_hook(
            lambda _block, _given, state: states.append(state)
        )
        try:
            velocity = self.model(*given, kept=kept, route=route, **more)
        finally:
            hook.remove()
        start, end = self.model.config.tread_route(route)
        if kept is not None and start <= self.block < end:
            features = features.take_along_dim(kept[..., None], 1)
        # Text tokens come last.
        return velocity, cosines(self.projector(states[0][:, : features.shape[1]]), features)


class Alignment:
    """The projector's part of training.

    Args:
        model, block, feature_width: as for `Aligned`.
        settings: of the phase's optimizer; the projector's gradient is clipped by itself.
        seed: of its first weights.
    """

    def __init__(
        self, model: Denoiser, block: int, feature_width: int, settings: Optimizer, seed: int
    ) -> None:
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.aligned = Aligned(model, block, feature_width)
        self.aligned.projector.to(next(model.parameters()).device)
        self.optimizers = Optimizers(self.aligned.projector, settings)

    def step(self, factor: float) -> None:
        """Update the projector, at `factor` times the full rate."""
        clip_grad_norm_(self.aligned.projector.parameters(), self.settings.clip_norm)
        self.optimizers.step(factor)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of it, as named sets."""
        return {
            PROJECTOR: self.aligned.projector.state_dict(),
            PROJECTOR_OPTIMIZER: self.optimizers.tensors(),
        }

    def load(self, tensors: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Bring it back from a checkpoint's sets."""
        self.aligned.projector.load_state_dict(tensors(PROJECTOR))
        self.optimizers.load(tensors(PROJECTOR_OPTIMIZER))
