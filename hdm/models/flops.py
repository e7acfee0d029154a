"""Floating-point operations of XUT, counted from its sizes: two for each multiplication and
addition of a matrix product.

Elementwise arithmetic is not counted, as is usual and as torch's own counter does; a test holds
this to that.

Shapes: L image tokens, T text tokens, S tokens that a block sees, Q of them that it gives back, D
width, M feed-forward width.
"""

from __future__ import annotations

from hdm.architecture import XUTConfig
from hdm.models.tread import num_kept


def forward_flops(
    config: XUTConfig,
    num_image: int,
    num_text: int,
    batch: int = 1,
    tread_rate: float = 0.0,
    route: tuple[int, int] | None = None,
) -> int:
    """One forward pass of a batch.

    Args:
        config: sizes and variants.
        num_image, num_text: tokens of a sample, padding counted.
        batch: samples.
        tread_rate: share of the image tokens that skip the route, in [0, 1).
        route: (start, end) over the blocks as they run; None: the whole U.
    """
    ends = _ends_flops(config, num_image, num_text)
    return batch * (ends + sum(_blocks_flops(config, num_image, num_text, tread_rate, route)))


def training_flops(
    config: XUTConfig,
    num_image: int,
    num_text: int,
    batch: int = 1,
    tread_rate: float = 0.0,
    route: tuple[int, int] | None = None,
    recomputed: frozenset[int] = frozenset(),
) -> int:
    """One training step of a batch without the optimizer: a backward pass is counted as two forward
    passes.

    Args:
        recomputed: numbers of the blocks whose forward pass is done once more (gradient
            checkpointing).
    """
    blocks = _blocks_flops(config, num_image, num_text, tread_rate, route)
    again = batch * sum(flops for number, flops in enumerate(blocks) if number in recomputed)
    return 3 * forward_flops(config, num_image, num_text, batch, tread_rate, route) + again


def _ends_flops(config: XUTConfig, num_image: int, num_text: int) -> int:
    """All but the blocks, for one sample: embeddings, the shared modulation and the output
    layer.
    """
    d = config.width
    patch = config.channels * config.patch_size**2
    tokens = 2 * num_image * patch * d * 2 + 2 * num_text * config.text_width * d
    embedding = 2 * d * d + (2 * d + 2 * d * d if config.aspect_embedding else 0)
    modulation = 3 * 2 * (d * 4 * d + 4 * d * 3 * d) if config.modulation == "shared" else 0
    return tokens + embedding + modulation


def _blocks_flops(
    config: XUTConfig,
    num_image: int,
    num_text: int,
    tread_rate: float,
    route: tuple[int, int] | None,
) -> list[int]:
    """Each block's, as they run, for one sample."""
    first_decoder = config.prev_blocks + config.depth * config.enc_blocks
    cross = {first_decoder + i * config.dec_blocks for i in range(config.depth)}
    total = config.num_blocks
    start, end = config.tread_route(route)
    kept = num_kept(num_image, tread_rate)
    counted = []
    for number in range(total):
        routed = kept < num_image and start <= number < end
        seen = (kept if routed else num_image) + num_text
        # The last block gives back image tokens alone, where it has no skip and sees all.
        given = num_image if number == total - 1 and number not in cross and not routed else seen
        counted.append(_block_flops(config, seen, given, cross=number in cross))
    return counted


def _block_flops(config: XUTConfig, seen: int, given: int, *, cross: bool) -> int:
    d = config.width
    m = config.mlp_width
    attention = 2 * seen * 3 * d * d + 4 * given * seen * d + 2 * given * d * d
    cross_attention = 2 * seen * 3 * d * d + 4 * seen * seen * d + 2 * seen * d * d if cross else 0
    parts = 3 if cross else 2
    modulation = parts * 2 * d * 3 * d if config.modulation == "per_block" else 0
    return attention + cross_attention + 2 * given * 3 * d * m + modulation
