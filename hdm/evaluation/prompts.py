"""What is asked of the model: sets of prompts, each with the truth or the real pictures that belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hdm.config import EvaluateSettings, Pipeline
from hdm.demo.judge import SceneJudge, ScenePrompt
from hdm.emoji.catalogue import questions
from hdm.errors import ConfigError, InputError
from hdm.evaluation.real import SPLITS, RealPictures
from hdm.files import canonical_json
from hdm.generation.prompts import read_prompts
from hdm.store import Output

HELD_OUT, SCENES, EMOJI = "held_out", "scenes", "emoji"
NAMED = (HELD_OUT, SCENES, EMOJI)
"""What `evaluate.prompts` may be besides a file."""
SHARES = {"one_object": 1, "free_wordings": 3, "two_objects": 4}
"""Set with known truth → one of its images for so many of `evaluate.num_images`."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one sort, in order; image number i is generated with seed `seed + i`.

    Args:
        name: one of `judge.SETS`, combinations, names, held_out or prompts.
        texts: the prompts.
        asked: the truth asked for, where it is known, one for each prompt.
        keys: the real pictures that the prompts are captions of, where they are, one for each prompt.
        choices: the names that a person chooses from, the prompt among them, where that is asked, for each prompt.
    """

    name: str
    texts: tuple[str, ...]
    asked: tuple[ScenePrompt, ...] = ()
    keys: tuple[str, ...] = ()
    choices: tuple[tuple[str, ...], ...] = ()


def prompt_sets(
    settings: EvaluateSettings, judge: SceneJudge | None, real: RealPictures
) -> list[PromptSet]:
    """The sets of an evaluation, the most telling first; captions of held-out pictures always, as distances need them.

    Raises:
        InputError: there are no prompts.
    """
    sets: list[PromptSet] = []
    count = settings.num_images
    if settings.prompts == SCENES and judge is not None:
        sets += [
            _asked(judge, name, max(1, count // share), settings.seed)
            for name, share in SHARES.items()
        ]
    elif settings.prompts == EMOJI:
        sets += [
            PromptSet(
                name,
                tuple(one.name for one in asked[:count]),
                choices=tuple(one.choices for one in asked[:count]),
            )
            for name, asked in questions(settings.seed).items()
        ]
    elif settings.prompts != HELD_OUT:
        texts = read_prompts(Path(settings.prompts))
        sets += [PromptSet("prompts", tuple(texts[number % len(texts)] for number in range(count)))]
    keys = list(real.captions)
    if keys:
        wanted = [
            keys[number % len(keys)]
            for number in range(count if not sets else min(count, len(keys)))
        ]
        sets += [
            PromptSet(HELD_OUT, tuple(real.captions[key] for key in wanted), keys=tuple(wanted))
        ]
    if not sets:
        raise InputError(
            "no held-out picture has a caption",
            do="raise filter.held_out, or name a file of prompts in evaluate.prompts",
        )
    return sets


def check_prompts(pipeline: Pipeline) -> None:
    """Raise an InputError where the prompts cannot be had."""
    wanted = pipeline.evaluate.prompts
    if wanted == SCENES and pipeline.download.kind != "scenes":
        raise ConfigError(
            "evaluate.prompts: scenes needs download.kind: scenes",
            where="evaluate.prompts",
            do="write held_out, or name a file of prompts",
        )
    if wanted == EMOJI and pipeline.download.kind != "emoji":
        raise ConfigError(
            "evaluate.prompts: emoji needs download.kind: emoji, whose list leaves out what is asked for",
            where="evaluate.prompts",
            do="write held_out, or name a file of prompts",
        )
    if wanted not in NAMED:
        read_prompts(Path(wanted))


def check_held_out(pipeline: Pipeline, filter: Output | None) -> None:
    """Raise an InputError where held-out prompts are asked for and no picture is held out.

    Args:
        filter: its output, which knows; None: the shares tell.
    """
    settings = pipeline.filter
    counts: Mapping[str, float] = (
        filter.counts
        if filter
        else {"held_out": settings.held_out, "validation": settings.validation}
    )
    if pipeline.evaluate.prompts == HELD_OUT and not any(counts.get(split, 1) for split in SPLITS):
        among = f" among the {filter.counts.get('kept', 0)} that the filter keeps" if filter else ""
        raise InputError(
            f"evaluate.prompts: held_out needs pictures kept out of training, and there are none{among}",
            where="filter.held_out",
            do="raise filter.held_out, take more pictures, or name a file of prompts in evaluate.prompts",
        )


def identify_prompts(settings: EvaluateSettings) -> dict[str, str]:
    """What of the prompts belongs in the digest beyond the settings: a file's content instead of its place.

    Raises:
        InputError: the file cannot be read.
    """
    if settings.prompts == EMOJI:
        asked = {
            name: [[one.name, *one.choices] for one in found]
            for name, found in questions(settings.seed).items()
        }
        return {"prompts": hashlib.sha256(canonical_json(asked)).hexdigest()}
    if settings.prompts in NAMED:
        return {"prompts": settings.prompts}
    return {
        "prompts": hashlib.sha256(
            "\n".join(read_prompts(Path(settings.prompts))).encode()
        ).hexdigest()
    }


def _asked(judge: SceneJudge, name: str, count: int, seed: int) -> PromptSet:
    asked = judge.prompts(name, count, seed)
    return PromptSet(name, tuple(prompt.text for prompt in asked), asked=tuple(asked))
