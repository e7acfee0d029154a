"""How pictures and captions are encoded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import model_validator

from hdm import values
from hdm.architecture import XUTConfig
from hdm.errors import ConfigError
from hdm.models.settings import WithAutoencoder
from hdm.pictures.settings import WithImages
from hdm.settings import Settings, runtime, since
from hdm.values import Within

SHARE_STEP = 1 / 16


class EncodeSettings(Settings):
    """How pictures and captions are encoded. Latents are made for every resolution of a training
    phase.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    shard_mb: values.Megabytes = 256
    """Upper size of a latent shard."""
    max_aspect: values.Aspect = 2.0
    """Pictures with a larger aspect ratio are cropped to it about their middle."""
    max_tokens: values.Tokens = 256
    """Captions are cut to this many tokens."""
    text_embeddings: bool = False
    """Cache the text encoder's output (cut to its real length) instead of running it in
    training.
    """
    text_dtype: Literal["float16", "int8"] = "float16"
    """Type of cached text embeddings; int8: 8 bits with a scale for each token, half the bytes. The
    stage prints the rounding error.
    """
    features: bool = False
    """Cache patch features of `components.vision`, for `train.align_weight`."""
    features_px: Annotated[int, Within(14, 16_384)] = 224
    """Shorter side of the pictures that features are made from, a multiple of the vision model's
    patch: 224 px at 14 px a patch give 256 features for a square, 0.4 MB in 16 bits at a width of
    768. One output serves all resolutions.
    """
    from_larger: tuple[values.Side, ...] = ()
    """Resolutions whose latents are downscaled from those of the next larger one instead of being
    encoded. The stage prints how far they are from encoded ones; they are close only with an
    autoencoder trained for it.
    """
    shares: dict[values.Side, Annotated[float, Within(0.0625, 1)]] = since("0.3.0", {})
    """Resolution → share of the training pictures that are encoded at it, a multiple of 1/16, for a
    phase that sees only some of them: `{1024: 0.4375}`. A larger share later encodes only what it
    adds. Resolutions that are not named: all pictures.
    """
    tile_px: Annotated[int, Within(32, 65_536)] | None = None
    """Side of the overlapping tiles in which larger pictures are encoded, for pictures that do not
    fit in memory. None: whole.
    """
    # Digests leave out the settings from here on, which change how the stage runs and not its
    # files.
    crop_pictures: values.CountOrNone = runtime(4)
    """Number of pictures of each resolution on which crops of latents are compared with encoded
    crops.
    """
    batch_size: values.Batch = runtime(32)
    device: values.Devices = runtime("auto")
    """Latents may use several devices, which share the shards: auto uses every accelerator,
    `cuda:0,cuda:2` those two.
    """

    @model_validator(mode="after")
    def _check_shares(self) -> EncodeSettings:
        for resolution, share in self.shares.items():
            if share % SHARE_STEP:
                low, high = (math.floor(share / SHARE_STEP), math.ceil(share / SHARE_STEP))
                raise ConfigError(
                    f"share {share} of {resolution} px is not a multiple of 1/16",
                    where="encode.shares",
                    do=f"use {low * SHARE_STEP or SHARE_STEP} or {high * SHARE_STEP}",
                )
        return self

    @property
    def framing(self) -> dict[str, Any]:
        """What all files of latents and features depend on."""
        return {"shard_mb": self.shard_mb, "max_aspect": self.max_aspect}


class Resolved(Protocol):
    """A phase, as far as encoding asks."""

    @property
    def resolution(self) -> int: ...


class Trained(Protocol):
    """What the encoded pictures are for."""

    @property
    def model(self) -> XUTConfig: ...
    @property
    def phases(self) -> Sequence[Resolved]: ...


class Pipeline(WithAutoencoder, WithImages, Protocol):
    """The part of a pipeline that this package reads."""

    @property
    def encode(self) -> EncodeSettings: ...
    @property
    def train(self) -> Trained: ...
    @property
    def encoded_from(self) -> Mapping[int, int | None]:
        """Resolution → the larger one whose latents it is downscaled from; None: it is encoded."""
