"""Losses of an autoencoder: reconstruction, divergence of the posterior, and lack of equivariance.

Shapes: B batch, H W picture size; pictures (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from hdm.models.autoencoder import raw_latent
from hdm.models.equivariance import Transform
from hdm.vae.perceptual import load_perceptual
from hdm.vae.settings import VaeSettings

Terms = dict[str, Tensor]
log = logging.getLogger(__name__)


def pixel_difference(decoded: Tensor, target: Tensor, kind: str = "l1") -> Tensor:
    """Mean absolute (l1) or mean squared (l2) difference of all values; a scalar."""
    difference = decoded - target
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


def edge_difference(decoded: Tensor, target: Tensor, kind: str = "l1") -> Tensor:
    """`pixel_difference` of the differences between neighbouring pixels, vertical plus horizontal.
    It penalises blurred edges.
    """
    vertical = pixel_difference(decoded.diff(dim=2), target.diff(dim=2), kind)
    horizontal = pixel_difference(decoded.diff(dim=3), target.diff(dim=3), kind)
    return vertical + horizontal


def divergence(posterior: Any) -> Tensor:
    """KL(posterior ‖ standard normal) in nats, averaged over all latent values; a scalar.

    Args:
        posterior: diffusers' `DiagonalGaussianDistribution`.
    """
    # diffusers sums over all values of a picture's latent.
    per_value: Tensor = posterior.kl().mean() / posterior.mean[0].numel()
    return per_value


class Objective:
    """The weighted sum that is minimised.

    Args:
        settings: weights of the terms.
        device: device of the pictures.

    Raises:
        InputError: the weights of the perceptual term are not on this machine.
    """

    def __init__(self, settings: VaeSettings, device: str) -> None:
        self.settings = settings
        self.perceptual = load_perceptual(device) if settings.perceptual_weight else None
        if self.perceptual is None:
            log.info("without a perceptual term: vae.perceptual_weight is 0")

    def __call__(
        self, model: Any, image: Tensor, transform: Transform, generator: torch.Generator
    ) -> tuple[Tensor, Terms]:
        """The loss of a batch, and its terms by name, unweighted.

        With E, D the autoencoder, z a draw from E(x) and τ the transform: L(D(z), x) + w·L(D(τz),
        τx) + v·KL (EQ-VAE, arXiv 2502.09509, which draws τ or the identity where this takes both).

        Args:
            model: a diffusers autoencoder; gradients reach its weights.
            image: the batch.
            transform: τ, one for the whole batch.
            generator: draws from the posterior.
        """
        encoded = model.encode(image)
        settings = self.settings
        raw = raw_latent(encoded, generator)
        terms = {"reconstruction": self._unlikeness(model.decode(raw).sample, image)}
        loss = terms["reconstruction"]
        if settings.equivariance_weight:
            moved, target = transform.both(raw, image)
            # Both terms use the same sample z, so only the transform differs.
            terms["equivariance"] = self._unlikeness(model.decode(moved).sample, target)
            loss = loss + settings.equivariance_weight * terms["equivariance"]
        if hasattr(encoded, "latent_dist"):
            terms["kl"] = divergence(encoded.latent_dist)
            # Autoencoders without a posterior have no such term.
            loss = loss + settings.kl_weight * terms["kl"]
        return loss, terms

    def _unlikeness(self, decoded: Tensor, target: Tensor) -> Tensor:
        settings = self.settings
        total = pixel_difference(decoded, target, settings.reconstruction)
        if settings.edge_weight:
            total = total + settings.edge_weight * edge_difference(
                decoded, target, settings.reconstruction
            )
        if self.perceptual is not None:
            total = total + settings.perceptual_weight * self.perceptual(decoded, target)
        return total
