"""What can be set of `hdm bootstrap`."""

from __future__ import annotations

from hdm import values
from hdm.settings import Settings


class BootstrapSettings(Settings):
    minutes: values.Minutes | None = None
    """How long it takes in all, measuring included; None: as long as the demo's components took."""
    seed: values.Seed = 0
    """Of weights, order and crops."""
    size_px: values.Side = 64
    """Shorter side of the pictures that the autoencoder sees most."""
    channels: values.Few = 8
    """Channels of a latent."""
    max_pictures: values.Count | None = None
    """Use only the first N pictures."""
