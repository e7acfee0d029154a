"""The interface of denoisers for training and sampling, and the registry of denoisers.

A new architecture is one module: a subclass of `Denoiser`, registered for its configuration, which
`hdm.models.building` imports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from hdm.architecture import XUTConfig


class DenoiserBlock(nn.Module):
    """The unit that is compiled, recomputed and sharded; its first argument and its result are
    tokens, (B, S, D).

    The tokens of the image come first. `dropout` is the rate at which training drops features of
    the block's updates (`execution.drop_updates`).
    """

    dropout: float = 0.0
    __call__: Callable[..., Tensor]


class Denoiser(nn.Module, ABC):
    """A network that predicts the objective's target from a noisy latent. `architecture` holds its
    sizes, and describes its latents, text and positions.
    """

    architecture: XUTConfig
    __call__: Callable[..., Tensor]

    @property
    def config(self) -> XUTConfig:
        # A property, since a subclass of diffusers' models has one of this name for its
        # config.json.
        return self.architecture

    @abstractmethod
    def blocks(self) -> Iterator[DenoiserBlock]:
        """All blocks in execution order."""

    @abstractmethod
    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        *,
        positions: Tensor | None = None,
        log_aspect: Tensor | None = None,
        text_mask: Tensor | None = None,
        kept: Tensor | None = None,
        route: tuple[int, int] | None = None,
    ) -> Tensor:
        """Predict the target.

        Args:
            latent: noisy latent (B, C, H, W).
            timestep: (B,) in [0, 1]; 1 is pure noise.
            text: text embedding (B, T, text_width).
            positions: (y, x) of each patch; None: the whole picture.
            log_aspect: ln(width / height) of the picture, (B,); None: a square.
            text_mask: (B, T) bool, False at padding; None: no padding.
            kept: image tokens that pass through the route, (B, K) int64; None: all of them.
            route: the blocks that see only the kept tokens, (start, end), end exclusive; None: the
                default.

        Returns:
            (B, C, H, W).
        """


# The registry goes by the configuration's type, since digests and files hold configurations only.
_BUILDERS: dict[type[XUTConfig], Callable[..., Denoiser]] = {}


def register(config: type[XUTConfig], build: Callable[..., Denoiser]) -> None:
    """Register this denoiser for a type of configuration; the last registration wins."""
    _BUILDERS[config] = build


def builder_of(config: XUTConfig) -> Callable[..., Denoiser]:
    """The denoiser registered for a configuration's type.

    Raises:
        KeyError: nothing was.
    """
    return _BUILDERS[type(config)]
