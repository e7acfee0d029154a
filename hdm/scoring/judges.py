"""Judges write prompts and decide from the pixels whether pictures show what was asked for.

To use labelled data or a classifier, implement the `Judge` protocol and register it.
`evaluate.prompts: NAME` then uses its prompts, and `evaluate.accuracy` holds its verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hdm.keys import Key
from hdm.scoring.metrics import Pipeline
from hdm.statistics import Share


@dataclass(frozen=True)
class PromptSet:
    """A named list of prompts; image number i is generated with seed `seed + i`.

    Args:
        name: unique within an evaluation; letters and underscores.
        texts: the prompts.
        title: title in the report.
        asked: for each prompt what a judge has to see, if that is known.
        keys: for each prompt the real picture whose caption it is, if there is one.
        choices: for each prompt the names from which a person chooses, the prompt among them; empty
            if nobody chooses.
        headline: the judge's most telling questions, for a line of text.
    """

    name: str
    texts: tuple[str, ...]
    title: str = ""
    asked: tuple[Any, ...] = ()
    keys: tuple[Key, ...] = ()
    choices: tuple[tuple[str, ...], ...] = ()
    headline: tuple[str, ...] = ()


class Asker(Protocol):
    """Writes prompts."""

    def identify(self) -> Mapping[str, Any]:
        """What the prompts and a judge's answers depend on (versions, hashes of files), in JSON."""

    def prompt_sets(self, num_images: int, seed: int) -> Sequence[PromptSet]:
        """Its sets of prompts, the most telling first; a judge's have `asked`.

        Args:
            num_images: size of the first set; others may be smaller.
            seed: equal seeds give equal prompts.
        """


class Judge(Asker, Protocol):
    """Writes prompts and judges the pictures generated from them."""

    @property
    def questions(self) -> Sequence[str]:
        """The questions that it answers about every picture, such as `colour`."""

    def score(self, asked: Any, pixels: np.ndarray) -> Mapping[str, bool]:
        """By question, whether a picture (H, W, 3) uint8 shows what was `asked`."""

    def agreement(self) -> Mapping[str, Share]:
        """By question, how often it agrees with a person; {} if nobody has compared them."""


JUDGES: dict[str, Callable[[Pipeline], Judge]] = {}
"""By the value of `evaluate.prompts` that selects each."""
QUESTIONNAIRES: dict[str, Callable[[Pipeline], Asker]] = {}
"""Prompts whose pictures a person recognises among `choices`, likewise."""


def register(name: str, make: Callable[[Pipeline], Judge]) -> None:
    """Let `evaluate.prompts: NAME` use this judge's prompts.

    Args:
        name: the value of the setting.
        make: returns the judge; raises a ConfigError if the pipeline does not fit it.

    Raises:
        ValueError: the name is taken.
    """
    _check_free(name)
    JUDGES[name] = make


def register_questionnaire(name: str, make: Callable[[Pipeline], Asker]) -> None:
    """Let `evaluate.prompts: NAME` use prompts that have `choices`: a page asks a person which of
    them a picture shows.

    Args:
        name, make: as for `register`.

    Raises:
        ValueError: the name is taken.
    """
    _check_free(name)
    QUESTIONNAIRES[name] = make


def _check_free(name: str) -> None:
    # `evaluate.prompts` selects from both registries.
    if name in JUDGES or name in QUESTIONNAIRES:
        raise ValueError(f"prompts called {name!r} are registered already")


def questionnaire_of(pipeline: Pipeline) -> Asker | None:
    """The questionnaire that the pipeline's prompts come from; None if they come from elsewhere.

    Raises:
        ConfigError: the pipeline does not fit it.
    """
    make = QUESTIONNAIRES.get(pipeline.evaluate.prompts)
    return None if make is None else make(pipeline)


def judge_of(pipeline: Pipeline) -> Judge | None:
    """The judge that the pipeline's prompts come from; None if they come from elsewhere.

    Raises:
        ConfigError: the pipeline does not fit the judge.
    """
    make = JUDGES.get(pipeline.evaluate.prompts)
    return None if make is None else make(pipeline)
