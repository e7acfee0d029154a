"""TREAD: some image tokens skip the middle of the network (arXiv 2501.04765).

Shapes: B batch, L image tokens, T text tokens, S = L + T, D width. All text tokens are always kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hdm.architecture import XUTConfig
from hdm.errors import InputError


def num_kept(num_tokens: int, rate: float) -> int:
    """Number of image tokens kept at a drop rate: num_tokens - ⌊num_tokens · rate⌋."""
    if not 0 <= rate < 1:
        raise InputError(
            f"TREAD rate {rate} is outside [0, 1)", do="0 keeps all tokens, 0.5 drops half of them"
        )
    return num_tokens - math.floor(num_tokens * rate)


def rate_at(schedule: Sequence[tuple[float, float]], progress: float) -> float:
    """The drop rate at a point of training, piecewise constant.

    `[(0, 0.75), (0.9, 0)]` drops three quarters and ends with a tenth of training on all tokens, as
    SPRINT does (arXiv 2510.21986).

    Args:
        schedule: (share of training at which it begins, rate), ascending, the first at 0.
        progress: completed share of training, in [0, 1].
    """
    if not schedule or schedule[0][0] > progress:
        raise InputError(
            f"the TREAD schedule {list(schedule)} says nothing of {progress:g} of the training",
            do="let it begin at 0",
        )
    return [rate for start, rate in schedule if start <= progress][-1]


def draw_kept(
    batch: int,
    num_tokens: int,
    rate: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """Draw, for each sample, the image tokens that are kept, uniformly without replacement.

    Args:
        num_tokens: image tokens of a sample.
        rate: share to drop, in [0, 1).
        generator: random generator, on its own device; None: torch's default.

    Returns:
        (batch, num_kept) int64 on `device`, ascending in each row; None if all are kept.
    """
    count = num_kept(num_tokens, rate)
    if count == num_tokens:
        return None
    # The generator's device draws, so that a seed drops the same tokens wherever the model runs.
    source = generator.device if generator is not None else device
    # The largest of independent uniform keys are a uniform draw without replacement.
    keys = torch.rand(batch, num_tokens, generator=generator, device=source)
    return keys.topk(count, sorted=False).indices.sort().values.to(device)


def kept_rows(kept_BK: Tensor, num_tokens: int, num_text: int) -> Tensor:
    """The kept rows of the flattened (B·S, …) sequence: the kept image tokens and all text tokens
    of each sample.

    Returns:
        (B, K + T) int64.
    """
    batch = kept_BK.shape[0]
    # Rows count through the flattened batch, so `gather` and `scatter` need one index for all
    # samples.
    text = torch.arange(num_tokens, num_tokens + num_text, device=kept_BK.device).expand(batch, -1)
    first = torch.arange(batch, device=kept_BK.device)[:, None] * (num_tokens + num_text)
    return torch.cat((kept_BK, text), 1) + first


def gather(tokens_BSD: Tensor, rows: Tensor) -> Tensor:
    """The tokens at `rows`, (B, K + T, D)."""
    flat = tokens_BSD.flatten(0, 1).index_select(0, rows.flatten())
    tokens: Tensor = flat.unflatten(0, rows.shape)
    return tokens


def scatter(tokens_BSD: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """`tokens_BSD` with the tokens at `rows` replaced by `kept`; the others as they are."""
    return (
        tokens_BSD.flatten(0, 1)
        .index_copy(0, rows.flatten(), kept.flatten(0, 1))
        .view_as(tokens_BSD)
    )


@dataclass(frozen=True)
class BlockTokens:
    """A block's numbers of input and output tokens, and whether it cross-attends to a skip."""

    seen: int
    given: int
    cross: bool


def block_tokens(
    model: XUTConfig, route: tuple[int, int] | None, tokens: tuple[int, int], rate: float
) -> list[BlockTokens]:
    """Of each block, in execution order, at a TREAD rate."""
    num_image, num_text = tokens
    first = model.prev_blocks + model.depth * model.enc_blocks
    total = model.num_blocks
    # The first block of each decoder stage has a skip.
    cross = {first + stage * model.dec_blocks for stage in range(model.depth)}
    start, end = model.tread_route(route)
    kept = num_kept(num_image, rate)
    blocks = []
    for number in range(total):
        # At a rate of 0 there is no route, so the last block may then leave out text.
        routed = kept < num_image and start <= number < end
        seen = (kept if routed else num_image) + num_text
        # The last block gives back image tokens alone, where it has no skip and sees all.
        last = number == total - 1 and number not in cross and not routed
        blocks.append(BlockTokens(seen, num_image if last else seen, number in cross))
    return blocks
