"""Floating-point operations of the models besides the denoiser, from their sizes: two for each
multiply-add of a product.

Elementwise arithmetic is not counted, as in torch's own counter, with which a test compares these.
Sizes come from the model's own config.json if it is on this machine, or else from what was
published with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hdm.errors import InputError
from hdm.models.components import locate, read_json

Sizes = TypeVar("Sizes")


@dataclass(frozen=True)
class LanguageModel:
    """A decoder-only transformer with gated feed-forward layers and grouped queries, such as Llama
    or Qwen.
    """

    width: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    mlp_width: int

    @property
    def num_weights(self) -> int:
        """Weights of the layers' matrices; embeddings are looked up, not multiplied."""
        # Queries and output for each head, keys and values for each key head.
        attention = self.width * self.head_size * (2 * self.heads + 2 * self.key_heads)
        return self.layers * (attention + 3 * self.width * self.mlp_width)

    def flops(self, tokens: int) -> int:
        """One forward pass of a text: 2 for each weight and token, and attention over all pairs."""
        attention = self.layers * 4 * tokens**2 * self.heads * self.head_size
        return 2 * self.num_weights * tokens + attention


@dataclass(frozen=True)
class ImageEncoder:
    """The encoder of an AutoencoderKL: residual stages, each but the last halving the picture, and
    a middle with attention.

    Args:
        channels: of each stage.
        blocks: residual blocks in each stage.
        latent_channels: of a latent; the encoder outputs mean and variance.
        in_channels: of a picture.
        attention: whether the middle has attention.
        quantized: whether a 1×1 convolution comes last.
    """

    channels: tuple[int, ...]
    blocks: int
    latent_channels: int
    in_channels: int = 3
    attention: bool = True
    quantized: bool = True

    @property
    def downscale(self) -> int:
        """Side of a latent value in pixels."""
        side: int = 2 ** (len(self.channels) - 1)
        return side

    @property
    def num_weights(self) -> int:
        """Weights of convolutions and attention, without biases and norms."""
        return sum(weights for _, weights in self._products())

    def flops(self, height: int, width: int) -> int:
        """One picture of this size: 2 for each weight and output pixel, and the middle's attention
        over all pairs.
        """
        area = height * width
        flops = 0
        for halvings, weights in self._products():
            flops += 2 * (area // 4**halvings) * weights
        if self.attention:
            last = area // self.downscale**2
            flops += 4 * last**2 * self.channels[-1]
        return flops

    def _products(self) -> Iterator[tuple[int, int]]:
        """(how often the picture was halved, weights) of every convolution and linear layer."""
        before = self.channels[0]
        end = len(self.channels) - 1
        yield 0, 9 * self.in_channels * before
        for stage, after in enumerate(self.channels):
            for _ in range(self.blocks):
                yield stage, _residual_weights(before, after)
                before = after
            if stage < end:
                yield stage + 1, 9 * after * after
        # The middle: two residual blocks, and attention's four projections.
        yield end, 2 * _residual_weights(before, before) + (4 * before**2 if self.attention else 0)
        # The 3×3 convolution to mean and variance, and the 1×1 one behind it.
        moments = 2 * self.latent_channels
        yield end, 9 * before * moments + (moments**2 if self.quantized else 0)


def _residual_weights(before: int, after: int) -> int:
    """Two 3×3 convolutions, and a 1×1 one where the channels change."""
    return 9 * before * after + 9 * after * after + (before * after if before != after else 0)


@dataclass(frozen=True)
class Tower:
    """A plain transformer of a contrastive model, for a picture's patches and the class token, or
    for a text.

    Args:
        width: of a token.
        layers: number of layers.
        tokens: number of tokens of an input, including the class token.
        mlp_ratio: hidden width over width.
        patch: number of values in a patch; 0: tokens are looked up.
    """

    width: int
    layers: int
    tokens: int
    mlp_ratio: float = 4.0
    patch: int = 0

    def flops(self) -> int:
        """One forward pass; the last projection of one token is left out."""
        weights = 4 * self.width**2 + 2 * int(self.mlp_ratio * self.width) * self.width
        layer = 2 * self.tokens * weights + 4 * self.tokens**2 * self.width
        return self.layers * layer + 2 * (self.tokens - 1) * self.patch * self.width


# Qwen3-0.6B: arXiv 2505.09388, table 1, and its config.json. SDXL's autoencoder: arXiv 2307.01952;
# its config.json is that of the fine-tuned ones too. ViT-L/14: arXiv 2103.00020, table 20.
PUBLISHED_TEXT = {"Qwen/Qwen3-0.6B": LanguageModel(1024, 28, 16, 8, 128, 3072)}
SDXL_ENCODER = ImageEncoder((128, 256, 512, 512), 2, 4)
PUBLISHED_AUTOENCODERS = dict.fromkeys(
    ("KBlueLeaf/EQ-SDXL-VAE", "stabilityai/sdxl-vae", "madebyollin/sdxl-vae-fp16-fix"), SDXL_ENCODER
)
PUBLISHED_TOWERS = {"ViT-L-14": (Tower(1024, 24, 257, patch=3 * 14**2), Tower(768, 12, 77))}


def language_model(reference: str) -> LanguageModel | None:
    """The sizes of a text encoder; None if its kind is not counted here.

    Raises:
        InputError: it is not on this machine, and its sizes are not known here.
    """
    return _sizes(reference, "config.json", PUBLISHED_TEXT, of_language_config)


def of_language_config(config: dict[str, Any]) -> LanguageModel | None:
    """From transformers' configuration, as a dictionary."""
    needed = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    if not needed <= config.keys():
        return None
    width = config["hidden_size"]
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or width // heads
    return LanguageModel(
        width, config["num_hidden_layers"], heads, key_heads, head_size, config["intermediate_size"]
    )


def image_encoder(reference: str) -> ImageEncoder | None:
    """The sizes of an autoencoder's encoder; None if its kind is not counted here.

    Raises:
        InputError: it is not on this machine, and its sizes are not known here.
    """
    return _sizes(reference, "config.json", PUBLISHED_AUTOENCODERS, _kl_encoder)


def _kl_encoder(config: dict[str, Any]) -> ImageEncoder | None:
    if config.get("_class_name") not in ("AutoencoderKL", "AutoencoderKLFlux2"):
        return None
    return of_autoencoder_config(config)


def of_autoencoder_config(config: dict[str, Any]) -> ImageEncoder:
    """From diffusers' configuration of such a class, as a dictionary."""
    return ImageEncoder(
        channels=tuple(config["block_out_channels"]),
        blocks=config["layers_per_block"],
        latent_channels=config["latent_channels"],
        in_channels=config.get("in_channels", 3),
        attention=config.get("mid_block_add_attention", True),
        quantized=config.get("use_quant_conv", True),
    )


def towers(reference: str) -> tuple[Tower, Tower] | None:
    """The contrastive model's towers for pictures and texts; None if its kind is not counted here.

    Raises:
        InputError: it is not on this machine, and its sizes are not known here.
    """
    if _name(reference) in PUBLISHED_TOWERS:
        return PUBLISHED_TOWERS[_name(reference)]
    return _sizes(reference, "open_clip_config.json", PUBLISHED_TOWERS, of_open_clip_config)


def of_open_clip_config(config: dict[str, Any]) -> tuple[Tower, Tower] | None:
    """From open_clip's configuration: the towers of picture and text."""
    model = config.get("model_cfg", {})
    vision = model.get("vision_cfg", {})
    text = model.get("text_cfg", {})
    # A ResNet's `layers` is a list of one number a stage.
    if not {"image_size", "patch_size", "width", "layers"} <= vision.keys() or not isinstance(
        vision["layers"], int
    ):
        return None
    # The picture's tokens are its patches and the class token.
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    picture = Tower(
        vision["width"],
        vision["layers"],
        patches + 1,
        vision.get("mlp_ratio", 4.0),
        3 * vision["patch_size"] ** 2,
    )
    return picture, Tower(
        text.get("width", 0),
        text.get("layers", 0),
        text.get("context_length", 77),
        text.get("mlp_ratio", 4.0),
    )


def _name(reference: str) -> str:
    return reference.partition("@")[0]


def _sizes(
    reference: str,
    file: str,
    published: Mapping[str, Sizes],
    read: Callable[[dict[str, Any]], Sizes | None],
) -> Sizes | None:
    """Sizes from the configuration in the model's folder, or the published ones if the model is
    not on this machine.
    """
    try:
        folder = locate(reference)
    except InputError:
        # Not on this machine: a plan must be possible before anything is downloaded.
        if _name(reference) in published:
            return published[_name(reference)]
        raise
    path = folder / file
    if not path.is_file():
        return None
    return read(read_json(path, "fetch the model again, or name another"))
