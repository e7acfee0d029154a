"""Makers of captions: the given captions, a CoCa, any transformers image-text-to-text model,
templates.

A maker gives each item some captions, not yet normalised. Random ones depend on the item's key
alone, so neither its neighbours nor the batch size nor a restart change them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hdm.captioning.settings import CaptionMaker
from hdm.chance import seed_of
from hdm.errors import ConfigError
from hdm.keys import Key
from hdm.models.contrastive import Contrastive


@dataclass(frozen=True)
class Item:
    """A kept picture to be captioned.

    Args:
        key: of the picture.
        fields: named by `hdm.captioning.settings.ITEM_FIELDS`; `given` is the first given caption,
            or None.
        pixels: (H, W, 3) uint8; None where no maker that looks needs them.
        given: all given captions, normalised.
    """

    key: Key
    fields: Mapping[str, Any]
    pixels: np.ndarray | None = None
    given: tuple[str, ...] = ()


class Maker(ABC):
    """One entry of `caption.makers`.

    Attributes:
        looks: whether it needs the pixels.
    """

    looks = False

    def __init__(self, settings: CaptionMaker) -> None:
        self.settings = settings

    @abstractmethod
    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        """Captions of each item, best first; [] for an item without any."""


class Given(Maker):
    """The captions that came with the picture."""

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        return [list(item.given) for item in items]


class Template(Maker):
    """Wordings filled with fields of the item. A picture's key selects its wording."""

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        return [self._of(item) for item in items]

    def _of(self, item: Item) -> list[str]:
        """Wordings for each given caption, or for an item without one."""
        captions = []
        for given in item.given or (item.fields["given"],):
            # Every given caption is worded, not only the first, which `fields` holds.
            captions += self._worded(item.key, {**item.fields, "given": given})
        return list(dict.fromkeys(captions))

    def _worded(self, key: Key, fields: Mapping[str, Any]) -> list[str]:
        usable = []
        for wording, needed in self.settings.wordings:
            if all(fields[name] for name in needed):
                usable.append(wording)
        # A permutation, so that several captions of a picture have different wordings.
        order = np.random.default_rng(caption_seed(key)).permutation(len(usable)).tolist()
        return [usable[number].format_map(fields) for number in order[: self.settings.count]]


def no_coca() -> ConfigError:
    """The error where a maker of kind coca meets a contrastive model that cannot caption."""
    return ConfigError(
        "caption.makers has a coca, and components.contrastive is not one",
        where="components.contrastive",
        do="name a CoCa there, or use a maker of kind transformers with components.captioner",
    )


class Describing(Maker):
    """Captions by a model that looks at the picture; the first of several is decoded greedily, the
    others are sampled.
    """

    looks = True

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        pictures = [item.pixels for item in items if item.pixels is not None]
        more = self.settings.count - 1
        results = []
        for item, picture, caption in zip(items, pictures, self.greedy(pictures), strict=True):
            sampled = self.sampled(item.key, picture, more) if more else []
            results.append([caption, *sampled])
        return results

    @abstractmethod
    def greedy(self, pictures: list[np.ndarray]) -> list[str]:
        """The best caption of each picture, (H, W, 3) uint8."""

    @abstractmethod
    def sampled(self, key: Key, picture: np.ndarray, count: int) -> list[str]:
        """Further captions of one picture. They depend on its key alone."""


class CoCa(Describing):
    """Captions by the contrastive model."""

    def __init__(self, settings: CaptionMaker, contrastive: Contrastive) -> None:
        super().__init__(settings)
        if not contrastive.can_caption:
            raise no_coca()
        self.contrastive = contrastive

    def greedy(self, pictures: list[np.ndarray]) -> list[str]:
        return self.contrastive.caption(pictures, self.settings.max_tokens)

    def sampled(self, key: Key, picture: np.ndarray, count: int) -> list[str]:
        # One picture at a time, so that its captions do not depend on its batch.
        generator = torch.Generator().manual_seed(caption_seed(key))
        return self.contrastive.caption(
            [picture] * count, self.settings.max_tokens, self.settings.temperature, generator
        )


def caption_seed(key: Key) -> int:
    """The seed of a picture's random captions."""
    return seed_of(f"caption:{key}")
