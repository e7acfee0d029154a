"""A denoiser as it was read from disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hdm.model_files.card import ModelCard
from hdm.model_files.weights import Weights
from hdm.models.denoiser import Denoiser

Kind = Literal["trained", "diffusers", "checkpoint", "file"]
"""What training wrote, a diffusers folder, a Lightning checkpoint, a bare weights file."""


@dataclass(frozen=True)
class StoredModel:
    """A denoiser's weights and card, and in which form they lie on disk."""

    weights: Weights
    card: ModelCard
    kind: Kind = "file"

    def denoiser(self) -> Denoiser:
        """The model in float32 on the CPU, with its parameters ready to be trained."""
        return self.weights.model()
