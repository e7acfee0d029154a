"""Builds the denoiser that a configuration describes."""

from __future__ import annotations

import hdm.models.xut  # noqa: F401  (registers itself, as every architecture that is imported here)
from hdm.architecture import XUTConfig
from hdm.models.denoiser import Denoiser, builder_of


def build_denoiser(config: XUTConfig) -> Denoiser:
    """The denoiser of a configuration, with new weights from torch's generator.

    Raises:
        KeyError: no denoiser is registered for this type of configuration.
    """
    return builder_of(config)(config)
