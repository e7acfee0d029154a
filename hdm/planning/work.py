"""Work of training and sampling for one sample: counted operations, and the lengths of the
sequences on which they are done.
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
    """Work for one sample.

    Args:
        flops: two for each multiply-add.
        tokens: length of the sequences, averaged over a model's blocks.
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
    """Work of a training step for one sample, without the optimizer.

    Args:
        model, phase: as configured; recomputed blocks count once more.
        tokens: of the image and of the text.
        language: the text encoder, if it runs in training.
        encoder: the autoencoder's encoder, if it runs in training.
    """
    again = recomputed_blocks(model.num_blocks, phase.checkpoint_blocks)
    flops = 0.0
    seen = 0.0
    for share, rate in _shares(phase):
        given = Pass(*tokens, tread_rate=rate, route=phase.tread_route)
        flops += share * training_flops(model, given, again)
        blocks = block_tokens(model, phase.tread_route, tokens, rate)
        seen += share * fmean(block.seen for block in blocks)
    # Forward passes only: the encoders are frozen.
    live = 0
    if language is not None:
        live += language.flops(tokens[1])
    if encoder is not None:
        live += encoder.flops(phase.resolution, phase.resolution)
    return Work(flops + live, seen)


def _shares(phase: Phase) -> list[tuple[float, float]]:
    """(share of the phase, TREAD rate) of each part of the phase's schedule."""
    shares = []
    for (start, rate), (end, _) in itertools.pairwise([*phase.tread_rates, (1.0, 0.0)]):
        shares.append((end - start, rate))
    return shares


def sampling(model: XUTConfig, tokens: tuple[int, int], steps: int, guided: bool) -> Work:
    """Work of sampling a picture: with guidance two forward passes a step. The decoder is not
    counted.
    """
    return Work(steps * (2 if guided else 1) * forward_flops(model, Pass(*tokens)), sum(tokens))
