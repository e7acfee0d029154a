"""Captions made of tags, as HDM's recipe writes them (arXiv 2509.06068): `kept tags ||| group %% group`, tags split by `$$`.

What stands before `|||` is always kept; groups, and the tags in them, can be left out and put into another order each time a caption is
trained on. A sentence is a group of one tag. What is trained on joins all tags by ", ". A caption without `|||` is none of these, and
stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hdm.chance import uniform

KEPT = "|||"
GROUP = "%%"
TAG = "$$"
_STREAM = 20  # apart from the loader's own draws
_MOST = 1 << 13  # draws a caption


@dataclass(frozen=True)
class TagDraws:
    """What is drawn at each position of the training clock.

    Args:
        tag_drop, group_drop: shares that are left out.
        shuffle: whether the order changes.
        seed: of the draws.
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
    return _joined(kept, groups)


def drawn_caption(caption: str, draws: TagDraws, position: int) -> str:
    """The caption as it is at a position of the training clock: a pure function of its
    arguments.
    """
    if KEPT not in caption:
        return caption
    kept, groups = _parts(caption)
    count = sum(2 + 2 * len(tags) for tags in groups)
    chance = iter(uniform(position * _MOST + np.arange(count), draws.seed, _STREAM).tolist())
    of_groups = [(next(chance), next(chance)) for _ in groups]
    left = []
    for tags, (drop, place) in zip(groups, of_groups, strict=True):
        if drop >= draws.group_drop:
            of_tags = [(next(chance), next(chance)) for _ in tags]
            left.append((place, _drawn(tags, draws.tag_drop, draws.shuffle, of_tags)))
    if draws.shuffle:
        left.sort(key=lambda group: group[0])
    return _joined(kept, [tags for _, tags in left])


def _drawn(
    tags: list[str], rate: float, shuffle: bool, chances: list[tuple[float, float]]
) -> list[str]:
    left = [(place, tag) for tag, (drop, place) in zip(tags, chances, strict=True) if drop >= rate]
    return [tag for _, tag in (sorted(left) if shuffle else left)]


def _parts(caption: str) -> tuple[list[str], list[list[str]]]:
    kept, _, rest = caption.partition(KEPT)
    return _tags(kept), [tags for group in rest.split(GROUP) if (tags := _tags(group))]


def _tags(text: str) -> list[str]:
    return [tag for part in text.split(TAG) if (tag := part.strip())]


def _joined(kept: list[str], groups: list[list[str]]) -> str:
    return ", ".join([*kept, *(tag for group in groups for tag in group)])
