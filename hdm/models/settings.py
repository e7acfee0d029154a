"""The choice of a pipeline's models, and of what is trained of one."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from hdm import values
from hdm.settings import Settings
from hdm.values import Within

Rank = Annotated[int, Within(1, 65_536)]
"""The number of columns of an adapter's matrices."""


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


class AdapterSettings(Settings):
    """An adapter: a few weights beside some of a model's layers. They alone are trained."""

    method: Literal["lora", "dora", "loha", "lokr", "ia3"] = "lora"
    """lora: arXiv 2106.09685; dora: 2402.09353; loha: 2108.06098; lokr: 2309.14859; ia3:
    2205.05638, one factor for each feature that a layer gives.
    """
    rank: Rank = 16
    """Lowered to a layer's smaller side where that is less."""
    alpha: values.PositiveWeight | None = None
    """What a layer's adapter adds is scaled by alpha / rank; None: by 1."""
    rslora: bool = False
    """Scale by alpha / √rank instead (arXiv 2312.03732). Of lora and dora."""
    targets: tuple[str, ...] | None = None
    """Layers by name, or by the end of it after a dot; * stands for anything: [attn.qkv,
    "backbone.*.w3"]. None: every linear layer of the blocks.
    """
    rank_pattern: dict[str, Rank] = Field({})
    """Ranks of layers named as in `targets`; the first that fits counts."""
    alpha_pattern: dict[str, values.PositiveWeight] = Field({})
    """Alphas of layers, likewise."""
    dropout: values.Rate = 0.0
    """In training: share of a layer's inputs that lora and dora do not see; of the rows that loha
    and lokr add.
    """

    @model_validator(mode="after")
    def _method_has_them(self) -> AdapterSettings:
        strange: tuple[str, ...] = ()
        if self.method == "ia3":
            strange = ("rank", "alpha", "rslora", "rank_pattern", "alpha_pattern", "dropout")
        elif self.method in ("loha", "lokr"):
            strange = ("rslora",)
        # By value: a pipeline that was written down and read again sets every field.
        fields = type(self).model_fields
        given = [name for name in strange if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"the method {self.method} has no {', '.join(given)}")
        return self

    @property
    def draws(self) -> bool:
        """Whether a forward pass in training draws random numbers."""
        # peft's LoHa and LoKr draw one for each layer even where nothing is dropped.
        return self.dropout > 0 or self.method in ("loha", "lokr")
