"""What makes captions: the given ones, a CoCa, any transformers image-text-to-text model,
templates.

A maker gives each item some captions, not yet normalised. Those drawn at random depend on the
item's key alone, so that neither its neighbours, the batch size nor a restart change them.
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
        fields: by `hdm.captioning.settings.ITEM_FIELDS`; `given` is the first of the given captions, None where
            there is none.
        pixels: (H, W, 3) uint8; None unless a maker that looks asked for them.
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
        """For each item its captions, best first; [] where there is none."""


class Given(Maker):
    """The captions that came with the picture."""

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        return [list(item.given) for item in items]


class Template(Maker):
    """Wordings with fields of the item; which one a picture gets is drawn by its key."""

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        return [self._of(item) for item in items]

    def _of(self, item: Item) -> list[str]:
        """Wordings of each given caption, or of an item without any."""
        made = []
        for given in item.given or (item.fields["given"],):
            made += self._worded(item.key, {**item.fields, "given": given})
        return list(dict.fromkeys(made))

    def _worded(self, key: Key, fields: Mapping[str, Any]) -> list[str]:
        usable = []
        for wording, needed in self.settings.wordings:
            if all(fields[name] for name in needed):
                usable.append(wording)
        order = np.random.default_rng(caption_seed(key)).permutation(len(usable))[
            : self.settings.count
        ]
        return [usable[number].format_map(fields) for number in order.tolist()]


def no_coca() -> ConfigError:
    """A contrastive model that cannot caption is asked to."""
    return ConfigError(
        "caption.makers has a coca, and components.contrastive is not one",
        where="components.contrastive",
        do="name a CoCa there, or use a maker of kind transformers with components.captioner",
    )


class CoCa(Maker):
    """Captions of the contrastive model; the first of several is the likeliest, the others are
    drawn.
    """

    looks = True

    def __init__(self, settings: CaptionMaker, contrastive: Contrastive) -> None:
        super().__init__(settings)
        if not contrastive.can_caption:
            raise no_coca()
        self.contrastive = contrastive

    def captions(self, items: Sequence[Item]) -> list[list[str]]:
        pictures = [item.pixels for item in items if item.pixels is not None]
        found = [
            [caption] for caption in self.contrastive.caption(pictures, self.settings.max_tokens)
        ]
        if self.settings.count > 1:
            for item, picture, captions in zip(items, pictures, found, strict=True):
                captions += self._drawn(item.key, picture)
        return found

    def _drawn(self, key: Key, picture: np.ndarray) -> list[str]:
        generator = torch.Generator().manual_seed(caption_seed(key))
        wanted = [picture] * (self.settings.count - 1)
        return self.contrastive.caption(
            wanted, self.settings.max_tokens, self.settings.temperature, generator
        )


def caption_seed(key: Key) -> int:
    """The seed of what is drawn for a picture's captions."""
    return seed_of(f"caption:{key}")
