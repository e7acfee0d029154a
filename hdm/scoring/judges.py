"""Judges: who asks for pictures and knows from their pixels whether they show what was asked for.

Whoever has labelled data, or a classifier, writes a class with what `Judge` names and registers it.
`evaluate.prompts: NAME` then asks its prompts, and `evaluate.accuracy` holds what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hdm.config import Pipeline
from hdm.keys import Key
from hdm.statistics import Share


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one sort, in order; image number i is generated with seed `seed + i`.

    Args:
        name: unique within an evaluation; of letters and underscores.
        texts: the prompts.
        title: as the report has it.
        asked: what a judge has to see, where it is known, one for each prompt.
        keys: the real pictures that the prompts are captions of, one for each prompt, if they are.
        choices: the names that a person chooses from, the prompt among them, where that is asked,
            for each prompt.
        headline: the judge's questions that tell most, for a line of text.
    """

    name: str
    texts: tuple[str, ...]
    title: str = ""
    asked: tuple[Any, ...] = ()
    keys: tuple[Key, ...] = ()
    choices: tuple[tuple[str, ...], ...] = ()
    headline: tuple[str, ...] = ()


class Judge(Protocol):
    """Asks for pictures and judges them."""

    @property
    def questions(self) -> Sequence[str]:
        """What it says of every picture, as `colour`."""

    def identify(self) -> Mapping[str, Any]:
        """What prompts and answers depend on: a version, hashes of files. Plain JSON values."""

    def prompt_sets(self, num_images: int, seed: int) -> Sequence[PromptSet]:
        """What it asks for, the most telling set first, each with `asked`.

        Args:
            num_images: of the first set; others may be smaller.
            seed: the same one asks the same.
        """

    def score(self, asked: Any, pixels: np.ndarray) -> Mapping[str, bool]:
        """By question, whether a picture (H, W, 3) uint8 shows what was `asked`."""

    def agreement(self) -> Mapping[str, Share]:
        """By question, how often it agrees with a person; {} where nobody has looked."""


JUDGES: dict[str, Callable[[Pipeline], Judge]] = {}
"""By the value of `evaluate.prompts` that asks for each."""


def register(name: str, make: Callable[[Pipeline], Judge]) -> None:
    """Let `evaluate.prompts: NAME` ask this judge's prompts.

    Args:
        name: the value.
        make: gives the judge; raises a ConfigError where the pipeline does not fit.

    Raises:
        ValueError: the name is taken.
    """
    if name in JUDGES:
        raise ValueError(f"a judge called {name!r} is registered already")
    JUDGES[name] = make


def judge_of(pipeline: Pipeline) -> Judge | None:
    """The judge whose prompts are asked; None where the prompts are others'.

    Raises:
        ConfigError: the pipeline does not fit the judge.
    """
    make = JUDGES.get(pipeline.evaluate.prompts)
    return None if make is None else make(pipeline)
