"""Sizes and variants of the XUT denoiser, as plain data, so that configuration and benches do not
import torch.

The configuration of another denoiser is a subclass with its own `kind`, registered by an entry
point of the group `hdm.denoisers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from hdm.errors import ConfigError
from hdm.extensions import DENOISERS, extensions
from hdm.values import Blocks, Few, PositiveBlocks, Width, Within, faults_of

_PRESET_FIELDS = (
    "width",
    "num_heads",
    "head_size",
    "mlp_width",
    "text_width",
    "depth",
    "enc_blocks",
    "dec_blocks",
)
_PRESET_SIZES = {
    "small": (896, 14, 64, 3072, 640, 4, 1, 2),
    "base": (1024, 16, 64, 3072, 1024, 4, 1, 3),
    "large": (1280, 10, 128, 4096, 1152, 4, 1, 3),
}
PRESETS: dict[str, dict[str, int]] = {
    name: dict(zip(_PRESET_FIELDS, sizes, strict=True)) for name, sizes in _PRESET_SIZES.items()
}


@dataclass(frozen=True)
class XUTConfig:
    """One Cross-U-Transformer. The variants default to the published model's; `recommended()` gives
    ours.

    width = num_heads · head_size; mlp_width is SwiGLU's hidden width; text_width the text
    encoder's. `depth` encoder stages of `enc_blocks` and as many decoder stages of `dec_blocks`
    form the U, between `prev_blocks` and `post_blocks` plain blocks. Sizes: HDM, arXiv 2509.06068.
    """

    # Read by pydantic where a configuration holds this.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    kind: ClassVar[str] = "xut"

    width: Width = 1024
    num_heads: Few = 16
    head_size: Width = 64
    mlp_width: Width = 3072
    text_width: Width = 1024
    depth: PositiveBlocks = 4
    enc_blocks: PositiveBlocks = 1
    dec_blocks: PositiveBlocks = 3
    prev_blocks: Blocks = 1
    post_blocks: Blocks = 3
    channels: Few = 4
    patch_size: Annotated[int, Within(1, 64)] = 2
    aspect_embedding: bool = True
    # published: the modulated norm is carried onward; prenorm: the raw stream is.
    residual: Literal["published", "prenorm"] = "published"
    # last: every decoder stage sees the last encoder stage; mirrored: decoder i sees encoder
    # depth-1-i.
    skips: Literal["last", "mirrored"] = "last"
    qk_norm: bool = False
    # pi: every log-frequency starts at ln π; log_spaced: evenly in the logarithm from π/2 to 8π,
    # over heads and features.
    rope: Literal["pi", "log_spaced"] = "pi"
    positions: Literal["box", "area"] = "box"
    # padded: padding is attended to (published); masked: it is not.
    text_mask: Literal["padded", "masked"] = "padded"
    modulation: Literal["shared", "per_block"] = "shared"
    final_norm: bool = False

    def __post_init__(self) -> None:
        if self.width != self.num_heads * self.head_size:
            raise ConfigError(
                f"width {self.width} is not num_heads {self.num_heads} × head_size"
                f" {self.head_size}",
                do="change one of the three",
            )
        if (
            min(self.depth, self.enc_blocks, self.dec_blocks) < 1
            or min(self.prev_blocks, self.post_blocks) < 0
        ):
            raise ConfigError(
                f"a U of depth {self.depth} with {self.enc_blocks} and {self.dec_blocks} blocks a"
                f" stage, between {self.prev_blocks} and {self.post_blocks} blocks",
                do=(
                    "depth, enc_blocks and dec_blocks are at least 1, prev_blocks and post_blocks"
                    " at least 0"
                ),
            )
        if self.head_size % 4:
            raise ConfigError(
                f"head_size {self.head_size} is not a multiple of 4",
                do="rotary positions need pairs on two axes",
            )

    @property
    def num_blocks(self) -> int:
        """Total number of transformer blocks."""
        return (
            self.prev_blocks + self.depth * (self.enc_blocks + self.dec_blocks) + self.post_blocks
        )

    def tread_route(self, wanted: tuple[int, int] | None) -> tuple[int, int]:
        """The blocks that only the tokens kept by TREAD pass through, as (start, end) in execution
        order, end exclusive.

        Args:
            wanted: None: the whole U, as published.

        Raises:
            ConfigError: there are no such blocks.
        """
        if wanted is None:
            return self.prev_blocks, self.num_blocks - self.post_blocks
        start, end = wanted
        if not 0 <= start < end <= self.num_blocks:
            raise ConfigError(
                f"the TREAD route ({start}, {end}) is empty or reaches beyond the {self.num_blocks}"
                " blocks",
                do=f"use (start, end) with 0 ≤ start < end ≤ {self.num_blocks}",
            )
        return start, end

    @classmethod
    def preset(cls, name: str, **changes: Any) -> XUTConfig:
        """The published size `name` ("small", "base", "large"), with the given fields replaced."""
        if name not in PRESETS:
            raise ConfigError(
                f"no XUT preset is called {name!r}", do=f"use one of {', '.join(PRESETS)}"
            )
        return replace(cls(), **{**PRESETS[name], **changes})

    def recommended(self) -> XUTConfig:
        """The same sizes, with the variants that later work found to be better."""
        return replace(
            self,
            # Lower held-out loss at equal samples and at equal time (docs/lab.md).
            residual="prenorm",
            # As in the paper's text; docs/lab.md shows no difference.
            skips="mirrored",
            qk_norm=True,
            rope="log_spaced",
            text_mask="masked",
            final_norm=True,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, with `kind` unless it is an XUT."""
        kind = {} if self.kind == XUTConfig.kind else {"kind": self.kind}
        return {**kind, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> XUTConfig:
        """The configuration that `to_dict` wrote; values written by other programs are checked
        against the same bounds.

        Raises:
            ConfigError: an unknown kind, unknown fields, or values out of bounds.
        """
        own = {name: value for name, value in values.items() if name != "kind"}
        return _class_of(values.get("kind", XUTConfig.kind))._of_fields(own)

    @classmethod
    def _of_fields(cls, values: Mapping[str, Any]) -> XUTConfig:
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ConfigError(f"unknown {cls.kind.upper()} fields {unknown}")
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            faults = "; ".join(faults_of(error))
            raise ConfigError(f"no {cls.kind.upper()} can be like that: {faults}") from error


def _class_of(kind: str) -> type[XUTConfig]:
    if kind == XUTConfig.kind:
        return XUTConfig
    added = {config.kind: config for config in extensions(DENOISERS).values()}
    if kind not in added:
        raise ConfigError(
            f"no installed package adds a denoiser of kind {kind!r}",
            where="train.model.kind",
            do=f"use one of {', '.join((XUTConfig.kind, *added))}",
        )
    config: type[XUTConfig] = added[kind]
    return config
