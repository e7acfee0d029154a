"""Settings of `hdm bootstrap`."""

from __future__ import annotations

from hdm import values
from hdm.settings import Settings


class BootstrapSettings(Settings):
    minutes: values.Minutes | None = None
    """Total duration, measuring included; None: as many steps as the demo's components had."""
    seed: values.Seed = 0
    """Seed of weights, order and crops."""
    size_px: values.Side = 64
    """Shorter side of most pictures that the autoencoder is trained on."""
    channels: values.Few = 8
    """Number of channels of a latent."""
    max_pictures: values.Count | None = None
    """Use only the first N pictures."""
