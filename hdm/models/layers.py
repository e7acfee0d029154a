"""The layers of XUT. Attribute names are those of the published weights.

Shapes: B batch, C latent channels, H W latent size, p patch size, L image tokens, T text tokens, S
= L + T, D width, N heads, K head size (D = N·K), M feed-forward width. Unless noted otherwise,
linear layers use torch's initialisation: weights and biases uniform within ±1/√inputs. Norms,
rotation and modulation are computed in float32, regardless of autocast.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdm.architecture import XUTConfig
from hdm.models.denoiser import DenoiserBlock
from hdm.models.rope import RotaryPositions


class Modulation(NamedTuple):
    """A norm's factor 1 + scale, its shift, and the factor 1 + gate of the update that follows,
    each (B, 1, D).
    """

    scale: Tensor
    shift: Tensor
    gate: Tensor


class Conditions(NamedTuple):
    """Every block's inputs besides its tokens.

    attn, xattn, mlp: the shared modulation, or the embedding (B, D) from which each block computes
        its own.
    positions: (B or 1, S, 2). mask: keys that may be attended to, (B, 1, 1, S) bool; None: all.
    """

    attn: Modulation | Tensor
    xattn: Modulation | Tensor
    mlp: Modulation | Tensor
    positions: Tensor
    mask: Tensor | None


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last axis, in float32 for any precision of input and weight."""

    eps: float

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps)


class PatchEmbedding(nn.Module):
    """Each p×p patch of the latent to one token: (B, C, H, W) → (B, L, D), row-major."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, latent_BCHW: Tensor) -> Tensor:
        patches: Tensor = self.proj(latent_BCHW)
        return patches.flatten(2).mT


class PatchOutput(nn.Module):
    """Each token to its p×p patch: (B, L, D) → (B, C, H, W). Starts near zero: weights N(0, 1/D⁴),
    bias 0.
    """

    def __init__(self, width: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(width, patch_size * patch_size * channels)
        nn.init.normal_(self.proj.weight, std=self.proj.in_features**-2)
        nn.init.zeros_(self.proj.bias)

    def forward(self, tokens_BLD: Tensor, height: int, width: int) -> Tensor:
        p = self.patch_size
        features: Tensor = self.proj(tokens_BLD)
        channels = features.shape[-1] // (p * p)
        # The published weights order a token's values by row, column, channel.
        patches = features.view(-1, height // p, width // p, p, p, channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens_BLD), -1, height, width)


class TimestepEmbedding(nn.Module):
    """Sinusoids of 1000·t, then a linear layer and Mish: (B,) → (B, D)."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        freqs = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000) / half))
        # Published files contain the frequencies, so they are a buffer.
        self.register_buffer("freqs", freqs.float()[None])
        self.proj = nn.Sequential(nn.Linear(width, width), nn.Mish())

    def forward(self, timestep_B: Tensor) -> Tensor:
        # Angles reach 1000, where float32 is wrong by 3e-5: a few thousand products in float64 cost
        # nothing.
        angles = 1000 * timestep_B.double()[:, None] * self.freqs.double()
        # Cosines come first in the published weights.
        sinusoids = torch.cat((angles.cos(), angles.sin()), -1)
        embedding: Tensor = self.proj(sinusoids.float())
        return embedding


class AspectEmbedding(nn.Sequential):
    """ln(width / height), (B,), to (B, D). The last layer starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(1, width), nn.Mish(), nn.Linear(width, width))
        _zero(self[-1])

    def forward(self, log_aspect_B: Tensor) -> Tensor:
        column = log_aspect_B.float()[:, None]
        # torch gives Sequential.forward no types.
        embedding: Tensor = super().forward(column)  # type: ignore[no-untyped-call]
        return embedding


class ModulationNetwork(nn.Sequential):
    """(B, D) → Modulation. The last layer starts at zero, so that every block starts unmodulated.

    Shared by all blocks it has a hidden layer of 4D (published); a block's own has none, as in DiT
    (arXiv 2212.09748).
    """

    def __init__(self, width: int, *, shared: bool) -> None:
        hidden = 4 * width
        layers = [
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.Mish(),
            nn.Linear(hidden, 3 * width),
        ]
        super().__init__(
            *(layers if shared else (nn.LayerNorm(width), nn.Mish(), nn.Linear(width, 3 * width)))
        )
        _zero(self[-1])

    def forward(self, embedding_BD: Tensor) -> Modulation:
        found = super().forward(embedding_BD)  # type: ignore[no-untyped-call]
        scale, shift, gate = found.float()[:, None].chunk(3, -1)
        return Modulation(1 + scale, shift, 1 + gate)


class ModulatedNorm(nn.Module):
    """RMSNorm(z)·(1 + scale) + shift, and the factor 1 + gate for the update that follows. The
    norm's weight starts at 1.
    """

    def __init__(self, config: XUTConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width)
        self.adaln = (
            ModulationNetwork(config.width, shared=False)
            if config.modulation == "per_block"
            else None
        )

    def forward(self, tokens_BSD: Tensor, modulation: Modulation | Tensor) -> tuple[Tensor, Tensor]:
        scale, shift, gate = self.modulation(modulation)
        return torch.addcmul(shift, self.norm(tokens_BSD).float(), scale), gate

    def modulation(self, given: Modulation | Tensor) -> Modulation:
        """The shared modulation, or the block's own, computed from the embedding."""
        if self.adaln is not None:
            given = self.adaln(given)
        assert isinstance(given, Modulation)
        return given


class Attention(nn.Module):
    """The common part of self- and cross-attention: QK-norm, rotation, the attention itself and the
    output layer.
    """

    def __init__(self, config: XUTConfig) -> None:
        super().__init__()
        self.heads = config.num_heads, config.head_size
        self.rope = RotaryPositions(config.num_heads, config.head_size, config.rope)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_size)
            self.k_norm = RMSNorm(config.head_size)
        self.qk_norm = config.qk_norm
        self.out = nn.Linear(config.width, config.width)

    def attend(
        self, qkv: Tensor, positions: Tensor, mask: Tensor | None, num_out: int | None = None
    ) -> Tensor:
        """Queries, keys and values (B, S, 3, N, K) to (B, S, D), or to the first num_out tokens
        alone.
        """
        qk, v = qkv.split((2, 1), 2)
        if self.qk_norm:
            q, k = qk.unbind(2)
            # Queries and keys are stacked, so that one rotation serves both.
            qk = torch.stack((self.q_norm(q), self.k_norm(k)), 2)
        # The rotation computes in float32, the attention in the precision of the matrix products.
        rotated = self.rope(qk, positions).type_as(qkv)
        q, k = rotated.transpose(1, 3).unbind(2)
        v = v.squeeze(2).transpose(1, 2)
        # Tokens beyond num_out are attended to, but have no queries.
        mixed = F.scaled_dot_product_attention(q[:, :, :num_out], k, v, attn_mask=mask)
        tokens: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return tokens


class SelfAttention(Attention):
    def __init__(self, config: XUTConfig) -> None:
        super().__init__(config)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)

    def forward(
        self, tokens_BSD: Tensor, positions: Tensor, mask: Tensor | None, num_out: int | None = None
    ) -> Tensor:
        return self.attend(
            self.qkv(tokens_BSD).unflatten(-1, (3, *self.heads)), positions, mask, num_out
        )


class CrossAttention(Attention):
    """Cross-attention: queries come from the tokens, keys and values from an encoder stage's state
    of the same tokens.
    """

    def __init__(self, config: XUTConfig) -> None:
        super().__init__(config)
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.kv = nn.Linear(config.width, 2 * config.width, bias=False)

    def forward(
        self, tokens_BSD: Tensor, skip_BSD: Tensor, positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        # Tokens and skip have the same positions, so one rotation serves queries and keys.
        qkv = torch.cat((self.q(tokens_BSD), self.kv(skip_BSD)), -1)
        return self.attend(qkv.unflatten(-1, (3, *self.heads)), positions, mask)


class FeedForward(nn.Module):
    """SwiGLU: silu(a)·b of one linear layer's halves a, b, then another (arXiv 2002.05202)."""

    def __init__(self, config: XUTConfig) -> None:
        super().__init__()
        # One product computes both halves.
        self.w12 = nn.Linear(config.width, 2 * config.mlp_width)
        self.w3 = nn.Linear(config.mlp_width, config.width)

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        a, b = self.w12(tokens_BSD).chunk(2, -1)
        tokens: Tensor = self.w3(F.silu(a) * b)
        return tokens


class Block(DenoiserBlock):
    """Self-attention, cross-attention to a skip where the block is built with one, feed-forward.

    After each, z = m + g·f(m) with the modulated norm m where the residual is `published`, z = z +
    g·f(m) where it is `prenorm`.
    """

    def __init__(self, config: XUTConfig, *, cross: bool = False) -> None:
        super().__init__()
        self.carries_norm = config.residual == "published"
        self.attn_pre_norm = ModulatedNorm(config)
        self.attn = SelfAttention(config)
        if cross:
            self.xattn_pre_norm = ModulatedNorm(config)
            self.xattn = CrossAttention(config)
        self.mlp_pre_norm = ModulatedNorm(config)
        self.mlp = FeedForward(config)

    def forward(
        self, z: Tensor, given: Conditions, skip: Tensor | None = None, num_out: int | None = None
    ) -> Tensor:
        """(B, S, D) to the same shape or, in a block without a skip, to the first num_out tokens;
        the others are only attended to.
        """
        # The published weights drop z here, and carry the modulated norm m on instead.
        m, gate = self.attn_pre_norm(z, given.attn)
        z = self._add(z, m, gate, self.attn(m, given.positions, given.mask, num_out))
        if skip is not None:
            m, gate = self.xattn_pre_norm(z, given.xattn)
            z = self._add(z, m, gate, self.xattn(m, skip, given.positions, given.mask))
        m, gate = self.mlp_pre_norm(z, given.mlp)
        return self._add(z, m, gate, self.feed(m, given.mask))

    def feed(self, tokens_BSD: Tensor, mask: Tensor | None) -> Tensor:
        """The feed-forward's update; what it is where `mask` is False reaches no output."""
        update: Tensor = self.mlp(tokens_BSD)
        return update

    def _add(self, z: Tensor, m: Tensor, gate: Tensor, update: Tensor) -> Tensor:
        carried = m if self.carries_norm else z
        if self.dropout and self.training:
            update = F.dropout(update, self.dropout)
        # The sum is float32 even under autocast, since updates are small compared to what they are
        # added to.
        return torch.addcmul(carried[:, : update.shape[1]], gate, update.float())
