"""Captions made of tags, as in HDM's recipe (arXiv 2509.06068): `kept tags ||| group %% group`,
where `$$` separates tags.

Tags before `|||` are always kept. Groups and the tags in them can be dropped and shuffled each time
a caption is trained on. A sentence is a group of one tag. For training all tags are joined by ", ".
A caption without `|||` is plain text and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter

import numpy as np

from hdm.chance import uniform

KEPT = "|||"
GROUP = "%%"
TAG = "$$"
_STREAM = 20  # separates these random numbers from the loader's own
_MOST = 1 << 13  # random numbers reserved for each caption


@dataclass(frozen=True)
class TagDraws:
    """How tags are dropped and shuffled at each position of the training clock.

    Args:
        tag_drop, group_drop: probabilities of dropping a tag and a group.
        shuffle: whether to shuffle groups, and tags within each.
        seed: of the random numbers.
    """

    tag_drop: float
    group_drop: float
    shuffle: bool
    seed: int


def plain_caption(caption: str) -> str:
    """The caption with all its tags, in their order."""
    if KEPT not in caption:
        return caption
    kept, groups = _parts(caption)
    return _join(kept, groups)


def drawn_caption(caption: str, draws: TagDraws, position: int) -> str:
    """The caption at a position of the training clock: a pure function of its arguments."""
    if KEPT not in caption:
        return caption
    kept, groups = _parts(caption)
    count = sum(2 + 2 * len(tags) for tags in groups)
    # A range of numbers for each position: neither workers nor restarts change what is drawn.
    chances = iter(uniform(position * _MOST + np.arange(count), draws.seed, _STREAM).tolist())
    # Each group and each tag takes two numbers: whether it is dropped, and its rank when shuffled.
    # All groups take theirs before any tag.
    of_groups = [(next(chances), next(chances)) for _ in groups]
    ranked = []
    for tags, (drop, rank) in zip(groups, of_groups, strict=True):
        if drop >= draws.group_drop:
            ranked.append((rank, _draw_tags(tags, draws, chances)))
    if draws.shuffle:
        ranked.sort(key=itemgetter(0))
    return _join(kept, [tags for _, tags in ranked])


def _draw_tags(tags: list[str], draws: TagDraws, chances: Iterator[float]) -> list[str]:
    ranked = []
    for tag in tags:
        drop = next(chances)
        rank = next(chances)
        if drop >= draws.tag_drop:
            ranked.append((rank, tag))
    if draws.shuffle:
        ranked.sort()
    return [tag for _, tag in ranked]


def _parts(caption: str) -> tuple[list[str], list[list[str]]]:
    """The tags that are always kept, and the groups; empty ones are left out."""
    kept, _, rest = caption.partition(KEPT)
    groups = [_tags(group) for group in rest.split(GROUP)]
    return _tags(kept), [tags for tags in groups if tags]


def _tags(text: str) -> list[str]:
    tags = [tag.strip() for tag in text.split(TAG)]
    return [tag for tag in tags if tag]


def _join(kept: list[str], groups: list[list[str]]) -> str:
    return ", ".join(chain(kept, *groups))
