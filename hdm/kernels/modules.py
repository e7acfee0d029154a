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
from hdm.kernels.packing import Packing
from hdm.kernels.untouched import untouched
from hdm.models import layers, rope
from hdm.models.layers import Modulation


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
        scale, shift, gate = self.modulation(modulation)
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
        tokens: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return tokens

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


class Block(layers.Block):
    """The feed-forward, two thirds of a block's products, computes nothing for padding."""

    def feed(self, tokens_BSD: Tensor, mask: Tensor | None) -> Tensor:
        # The last block returns image tokens alone, none of which is padding.
        has_padding = mask is not None and mask.shape[-1] == tokens_BSD.shape[1]
        if not (has_padding and suits(tokens_BSD) and self._untouched()):
            return super().feed(tokens_BSD, mask)
        assert mask is not None
        packing = Packing(mask[:, 0, 0])
        return packing.unpack(self.mlp(packing.pack(tokens_BSD)))

    def _untouched(self) -> bool:
        """Whether nobody looks into the feed-forward: packed tokens have another shape."""
        mlp = self.mlp
        if not untouched(mlp, FeedForward):
            return False
        return untouched(mlp.w12, Linear) and untouched(mlp.w3, Linear)
