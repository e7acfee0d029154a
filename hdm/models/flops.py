"""Floating-point operations of XUT, counted from its sizes: two for each multiplication and
addition of a matrix product.

Elementwise arithmetic is not counted, as in torch's own counter, against which a test compares
this.

Shapes: L image tokens, T text tokens, S tokens that a block sees, Q of them that it gives back, D
width, M feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass

from hdm.architecture import XUTConfig
from hdm.models.tread import BlockTokens, block_tokens


@dataclass(frozen=True)
class Pass:
    """The input of one forward pass.

    Args:
        num_image, num_text: tokens of a sample, padding counted.
        batch: samples.
        tread_rate: share of the image tokens that skip the route, in [0, 1).
        route: (start, end) over the blocks as they run; None: the whole U.
    """

    num_image: int
    num_text: int
    batch: int = 1
    tread_rate: float = 0.0
    route: tuple[int, int] | None = None


def forward_flops(config: XUTConfig, given: Pass) -> int:
    """One forward pass of a batch."""
    ends = _ends_flops(config, given.num_image, given.num_text)
    return given.batch * (ends + sum(_blocks_flops(config, given)))


def training_flops(config: XUTConfig, given: Pass, recomputed: frozenset[int] = frozenset()) -> int:
    """One training step of a batch without the optimizer; the backward pass counts as two forward
    passes.

    Args:
        recomputed: indices of the blocks whose forward pass is repeated (gradient checkpointing).
    """
    blocks = _blocks_flops(config, given)
    again = sum(flops for number, flops in enumerate(blocks) if number in recomputed)
    return 3 * forward_flops(config, given) + given.batch * again


def _ends_flops(config: XUTConfig, num_image: int, num_text: int) -> int:
    """Everything except the blocks, for one sample: embeddings, shared modulation, output layer."""
    d = config.width
    patch = config.channels * config.patch_size**2
    # Patch embedding and output layer cost the same; the second term is the text's projection.
    tokens = 2 * num_image * patch * d * 2 + 2 * num_text * config.text_width * d
    embedding = 2 * d * d + (2 * d + 2 * d * d if config.aspect_embedding else 0)
    # Three networks D → 4D → 3D run once per sample.
    modulation = 3 * 2 * (d * 4 * d + 4 * d * 3 * d) if config.modulation == "shared" else 0
    return tokens + embedding + modulation


def _blocks_flops(config: XUTConfig, given: Pass) -> list[int]:
    """Each block in execution order, for one sample."""
    tokens = (given.num_image, given.num_text)
    blocks = block_tokens(config, given.route, tokens, given.tread_rate)
    return [_block_flops(config, block) for block in blocks]


def _block_flops(config: XUTConfig, block: BlockTokens) -> int:
    d = config.width
    m = config.mlp_width
    seen = block.seen
    given = block.given
    # The terms are qkv of all tokens, scores and weighted sums of the tokens given back, and their
    # output layer.
    attention = 2 * seen * 3 * d * d + 4 * given * seen * d + 2 * given * d * d
    # q and kv together are three D × D matrices; all tokens are given back.
    cross_attention = (
        2 * seen * 3 * d * d + 4 * seen * seen * d + 2 * seen * d * d if block.cross else 0
    )
    parts = 3 if block.cross else 2
    modulation = parts * 2 * d * 3 * d if config.modulation == "per_block" else 0
    return attention + cross_attention + 2 * given * 3 * d * m + modulation
