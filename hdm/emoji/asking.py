"""Registers the names of emoji that are asked for."""

from __future__ import annotations

from typing import Any

from hdm.emoji.catalogue import COMBINATIONS, NAMES, questions
from hdm.errors import ConfigError
from hdm.scoring.judges import PromptSet, register_questionnaire
from hdm.scoring.metrics import Pipeline

EMOJI = "emoji"
TITLES = {
    COMBINATIONS: "Combinations that no training picture has",
    NAMES: "Names that no training picture bears",
}


class EmojiNames:
    """Asks for combinations and names that no training picture of kind emoji has.

    Args:
        seed: of the order of questions and choices.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def identify(self) -> dict[str, Any]:
        return {
            name: [[one.name, *one.choices] for one in asked]
            # The choices too: the metric `copies` stores them, and depends only on the digest of
            # these images.
            for name, asked in questions(self.seed).items()
        }

    def prompt_sets(self, num_images: int, seed: int) -> list[PromptSet]:
        sets = []
        for name, every in questions(seed).items():
            asked = every[:num_images]
            texts = tuple(one.name for one in asked)
            choices = tuple(one.choices for one in asked)
            sets.append(PromptSet(name, texts, title=TITLES[name], choices=choices))
        return sets


def emoji_names(pipeline: Pipeline) -> EmojiNames:
    """The questions of a pipeline that is trained on emoji.

    Raises:
        ConfigError: it has other pictures.
    """
    if pipeline.download.kind != "emoji":
        raise ConfigError(
            "evaluate.prompts: emoji needs download.kind: emoji, whose list leaves out what is"
            " asked for",
            where="evaluate.prompts",
            do="write held_out, or name a file of prompts",
        )
    return EmojiNames(pipeline.evaluate.seed)


register_questionnaire(EMOJI, emoji_names)
