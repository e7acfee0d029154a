"""The choice of a pipeline's models."""

from __future__ import annotations

from typing import Literal, Protocol

from hdm.settings import Settings


class Components(Settings):
    """The models that a pipeline uses: hub names (`org/name` or `org/name@revision`) or local
    folders.
    """

    folder: str | None = None
    """A folder that `hdm bootstrap` wrote, holding all of them; "demo" is the one in the package.
    The others override it.
    """
    contrastive: str | None = None
    """open_clip model for CLIP similarity and embeddings (and captions, where it is a CoCa)."""
    contrastive_pretrained: str | None = None
    """open_clip's pretrained tag, for a model named by architecture."""
    autoencoder: str | None = None
    """diffusers autoencoder."""
    text_encoder: str | None = None
    """transformers language model whose last hidden state conditions the denoiser; its tokenizer
    with it.
    """
    captioner: str | None = None
    """transformers image-text-to-text model; None: captions come from the contrastive model (a
    CoCa).
    """
    aesthetic_head: str | None = None
    """safetensors or .pth of a LAION linear or MLP head for the contrastive model's embeddings."""
    aesthetic_head_for: str | None = None
    """The contrastive model that the head was trained for, as ViT-L-14/openai or as `contrastive`
    has it; has to be set for heads that are neither known by their sha256 (LAION's) nor in
    `folder`, since a head for another model may invert the order.
    """
    aesthetic_head_activation: Literal["none", "relu"] | None = None
    """What stands between the layers of an MLP head, which its file does not say; None: for linear
    heads and those that are known.
    """
    vision: str | None = None
    """transformers vision transformer (DINOv2, …) whose features `encode.features` caches."""


class WithComponents(Protocol):
    """The part of a pipeline that names its frozen models."""

    @property
    def components(self) -> Components: ...


class WithAutoencoder(WithComponents, Protocol):
    """The part of a pipeline that describes its latents."""

    @property
    def own_channels(self) -> int | None:
        """Latent channels of the autoencoder that it trains from new weights; None: it uses the one
        that it names.
        """
