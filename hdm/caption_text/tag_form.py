"""Captions made of tags, as in HDM's recipe (arXiv 2509.06068): `kept tags ||| group %% group`,
where `$$` separates tags.

Tags before `|||` are always kept. Groups and the tags in them can be dropped and shuffled each time
a caption is trained on. A sentence is a group of one tag. For training all tags are joined by ", ".
A caption without `|||` is plain text and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def drawn_captions(captions: Sequence[str], draws: TagDraws, positions: Sequence[int]) -> list[str]:
    """Captions at positions of the training clock, one each. A caption drawn is a pure function of
    the caption, the draws and its position.
    """
    drawn = list(captions)
    tagged = [number for number, caption in enumerate(captions) if KEPT in caption]
    chances = _chances(
        [captions[number] for number in tagged], [positions[number] for number in tagged], draws
    )
    # One after the other: a batch of parted captions is many objects for the garbage collector.
    for number, own in zip(tagged, chances, strict=True):
        kept, groups = _parts(captions[number])
        drawn[number] = _join(kept, _draw_groups(groups, draws, own))
    return drawn


def _chances(
    captions: Sequence[str], positions: Sequence[int], draws: TagDraws
) -> Iterator[list[float]]:
    """The random numbers of each caption, at least two for each of its groups and tags. Drawn for
    all at once: a call of numpy costs as much as hundreds of numbers.
    """
    num_groups = np.array([caption.count(GROUP) + 1 for caption in captions], np.int64)
    num_tags = np.array([caption.count(TAG) for caption in captions], np.int64) + num_groups
    counts = 2 * (num_groups + num_tags)
    ends = np.cumsum(counts)
    starts = ends - counts
    # A range of numbers for each position: neither workers nor restarts change what is drawn.
    firsts = np.array(positions, np.int64) * _MOST - starts
    chances = uniform(np.repeat(firsts, counts) + np.arange(counts.sum()), draws.seed, _STREAM)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield chances[start:end].tolist()


def _draw_groups(groups: list[list[str]], draws: TagDraws, chances: list[float]) -> list[list[str]]:
    # Each group and each tag takes two numbers: whether it is dropped, and its rank when shuffled.
    # All groups take theirs before any tag, and tags of dropped groups take none.
    start = 2 * len(groups)
    ranked = []
    for number, tags in enumerate(groups):
        drop = chances[2 * number]
        rank = chances[2 * number + 1]
        if drop >= draws.group_drop:
            end = start + 2 * len(tags)
            drawn = _draw_tags(tags, draws, chances[start:end:2], chances[start + 1 : end : 2])
            ranked.append((rank, drawn))
            start = end
    if draws.shuffle:
        ranked.sort(key=itemgetter(0))
    return [tags for _, tags in ranked]


def _draw_tags(
    tags: list[str], draws: TagDraws, drops: list[float], ranks: list[float]
) -> list[str]:
    ranked = []
    for tag, drop, rank in zip(tags, drops, ranks, strict=True):
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
    return list(filter(None, map(str.strip, text.split(TAG))))


def _join(kept: list[str], groups: list[list[str]]) -> str:
    return ", ".join(chain(kept, *groups))
