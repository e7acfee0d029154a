"""The denoiser's modules with kernels: subclasses of the plain ones, with the same parameters.

Each bears the name of the module that it stands in for, since tools find layers by class name. A
kernel that reads past a child calls the plain forward where that child is not as installed: a
replaced child, a hook or a parametrization takes effect at the next call. The plain forward also
runs on other devices, in other precisions, and where a compiler traces the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdm.kernels.functions import attend, norm_and_rotate, rms_norm, suits, swiglu
from hdm.kernels.linear import by_onednn, gated, linear
from hdm.kernels.untouched import untouched
from hdm.models import layers, rope, xut
from hdm.models.layers import Conditions, Modulation
from hdm.models.packing import Packing


class Linear(nn.Linear):
    """oneDNN's product, compiled too."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class RMSNorm(layers.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not suits(x):
            return super().forward(x)
        return rms_norm(x, self.weight, eps=self.eps)


class PatchEmbedding(layers.PatchEmbedding):
    """The convolution as a linear layer, since patches do not overlap."""

    def forward(self, latent_BCHW: Tensor) -> Tensor:
        if not (suits(latent_BCHW) and untouched(self.proj, nn.Conv2d)):
            return super().forward(latent_BCHW)
        p = self.patch_size
        # (B, C, H, W) → (B, C, h, p, w, p) → (B, L, C·p·p), in the order of the convolution's
        # weight.
        grid = latent_BCHW.unflatten(2, (-1, p)).unflatten(4, (-1, p))
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ModulatedNorm(layers.ModulatedNorm):
    """Norm and modulation in one pass."""

    def forward(self, tokens_BSD: Tensor, modulation: Modulation | Tensor) -> tuple[Tensor, Tensor]:
        norm = self.norm
        if not (suits(tokens_BSD) and untouched(norm, RMSNorm)):
            return super().forward(tokens_BSD, modulation)
        scale, shift, gate = self.modulation(modulation, tokens_BSD.shape[1])
        return rms_norm(tokens_BSD, norm.weight * scale, shift, eps=norm.eps), gate


class _Attention(layers.Attention):
    """QK-norm and rotation in one pass; attention over few tokens by matrix products."""

    def attend(
        self, qkv: Tensor, positions: Tensor, mask: Tensor | None, num_out: int | None = None
    ) -> Tensor:
        if not (suits(qkv) and self._untouched()):
            return super().attend(qkv, positions, mask, num_out)
        weight, eps = None, 0.0
        if self.qk_norm:
            weight = torch.stack((self.q_norm.weight, self.k_norm.weight))
            eps = self.q_norm.eps
        q, k, v = norm_and_rotate(qkv, weight, positions, self.rope.freqs, eps=eps)
        mixed = attend(q[:, :, :num_out], k, v, mask)
        return mixed.transpose(1, 2).flatten(2)

    def _untouched(self) -> bool:
        if not untouched(self.rope, rope.RotaryPositions):
            return False
        if not self.qk_norm:
            return True
        plain = untouched(self.q_norm, RMSNorm) and untouched(self.k_norm, RMSNorm)
        return plain and self.q_norm.eps == self.k_norm.eps


class SelfAttention(_Attention, layers.SelfAttention):
    pass


class CrossAttention(_Attention, layers.CrossAttention):
    pass


class FeedForward(layers.FeedForward):
    """SwiGLU with little memory traffic: in sampling as part of the products."""

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        if not suits(tokens_BSD):
            return super().forward(tokens_BSD)
        w12 = self.w12
        # Training keeps the halves for the backward pass. Sampling does not write them, and is 7 %
        # faster for it.
        apart = torch.is_grad_enabled() or not untouched(w12, Linear)
        if apart or not by_onednn(tokens_BSD, w12.weight):
            product = swiglu(w12(tokens_BSD))
        else:
            product = gated(tokens_BSD, w12.weight, w12.bias)
        tokens: Tensor = self.w3(product)
        return tokens


class XUT(xut.XUT):
    """Text that is padding takes no part in the blocks' token-wise layers.

    Blocks then see packed tokens. Whoever looks into a block, or changes one, finds tokens as the
    plain model has them.
    """

    def _blocks(
        self,
        z: Tensor,
        given: Conditions,
        rows: Tensor | None,
        route: tuple[int, int],
        num_image: int,
    ) -> Tensor:
        if rows is not None or given.mask is None or not self._packs(z, given):
            return super()._blocks(z, given, rows, route, num_image)
        # Attention, which works on whole samples, needs no more than the longest text.
        longest = int(given.mask.any(0).flatten().nonzero().max()) + 1
        mask = given.mask[..., :longest]
        packing = Packing(mask[:, 0, 0], num_image)
        packed = Conditions(
            _of_tokens(given.attn, packing),
            _of_tokens(given.xattn, packing),
            _of_tokens(given.mlp, packing),
            given.positions[:, :longest],
            mask,
            packing,
        )
        z = z[:, :longest]
        num_packed = len(z) * num_image
        tokens = super()._blocks(packing.pack(z), packed, None, route, num_packed)
        return tokens[:, :num_packed].view(len(z), num_image, -1)

    def _packs(self, z: Tensor, given: Conditions) -> bool:
        # A block's own modulation would be computed for each token instead of each sample.
        if not (suits(z) and isinstance(given.attn, Modulation)):
            return False
        modules = (module for block in self.blocks() for module in block.modules())
        return all(
            type(module) in PACKABLE and untouched(module, type(module)) for module in modules
        )


def _of_tokens(modulation: Modulation | Tensor, packing: Packing) -> Modulation:
    """A shared modulation (B, 1, D) with a row for each packed token."""
    assert isinstance(modulation, Modulation)
    return Modulation(*(packing.spread(value) for value in modulation))


PACKABLE = frozenset(
    {
        layers.Block,
        rope.RotaryPositions,
        Linear,
        RMSNorm,
        ModulatedNorm,
        SelfAttention,
        CrossAttention,
        FeedForward,
    }
)
"""What a block consists of where its tokens can be packed."""
