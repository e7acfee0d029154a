"""Work of training and sampling, of one sample: counted operations, and how long the sequences are
on which they are done.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import fmean

from hdm.architecture import XUTConfig
from hdm.models.execution import recomputed_blocks
from hdm.models.flops import Pass, forward_flops, training_flops
from hdm.models.tread import block_tokens
from hdm.planning.counts import ImageEncoder, LanguageModel
from hdm.training.settings import Phase


@dataclass(frozen=True)
class Work:
    """Of one sample.

    Args:
        flops: two a multiplication and addition.
        tokens: of the sequences, on average over a model's blocks.
    """

    flops: float = 0.0
    tokens: float = 1.0


def training(
    model: XUTConfig,
    phase: Phase,
    tokens: tuple[int, int],
    language: LanguageModel | None,
    encoder: ImageEncoder | None,
) -> Work:
    """A training step's, a sample, the optimizer's left out.

    Args:
        model, phase: as configured; what is recomputed counts once more.
        tokens: of the image and of the text.
        language: the text encoder, where it runs in training.
        encoder: the autoencoder's, where it does.
    """
    again = recomputed_blocks(model.num_blocks, phase.checkpoint_blocks)
    flops, seen = 0.0, 0.0
    for share, rate in _shares(phase):
        given = Pass(*tokens, tread_rate=rate, route=phase.tread_route)
        flops += share * training_flops(model, given, again)
        seen += share * fmean(
            block.seen for block in block_tokens(model, phase.tread_route, tokens, rate)
        )
    live = (language.flops(tokens[1]) if language else 0) + (
        encoder.flops(phase.resolution, phase.resolution) if encoder else 0
    )
    return Work(flops + live, seen)


def _shares(phase: Phase) -> list[tuple[float, float]]:
    """(share of the phase, TREAD rate), over the phase."""
    starts = [*(start for start, _ in phase.tread_rates), 1.0]
    rates = (rate for _, rate in phase.tread_rates)
    return [
        (after - before, rate)
        for (before, after), rate in zip(itertools.pairwise(starts), rates, strict=True)
    ]


def sampling(model: XUTConfig, tokens: tuple[int, int], steps: int, guided: bool) -> Work:
    """A picture's: two forward passes a step with guidance. The decoder is not counted."""
    return Work(steps * (2 if guided else 1) * forward_flops(model, Pass(*tokens)), sum(tokens))
