"""What is asked of the model: sets of prompts, each with the truth or the real pictures that belong
to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdm.errors import InputError
from hdm.evaluation.real import SPLITS, RealPictures
from hdm.evaluation.settings import Pipeline
from hdm.files import canonical_json
from hdm.generation.prompt_files import read_prompts
from hdm.scoring.judges import JUDGES, QUESTIONNAIRES, PromptSet, judge_of, questionnaire_of
from hdm.store import Output

HELD_OUT = "held_out"


def prompt_sets(pipeline: Pipeline, real: RealPictures) -> list[PromptSet]:
    """The sets of an evaluation, the most telling first; captions of held-out pictures always, as
    distances need them.

    Raises:
        InputError: there are no prompts.
    """
    settings = pipeline.evaluate
    sets: list[PromptSet] = []
    count = settings.num_images
    # A judge's or a questionnaire's own sets, or those of a file.
    asker = judge_of(pipeline) or questionnaire_of(pipeline)
    if asker is not None:
        sets += asker.prompt_sets(count, settings.seed)
    elif settings.prompts != HELD_OUT:
        listed = read_prompts(Path(settings.prompts))
        repeated = tuple(listed[number % len(listed)] for number in range(count))
        sets += [PromptSet("prompts", repeated, title="Prompts")]
    # Also beside other prompts: distances compare images of captions with the captions' pictures.
    keys = list(real.captions)
    if keys:
        # Captions repeat only where they are the sole prompts.
        num_wanted = min(count, len(keys)) if sets else count
        wanted = [keys[number % len(keys)] for number in range(num_wanted)]
        sets += [
            PromptSet(
                HELD_OUT,
                tuple(real.captions[key] for key in wanted),
                title="Captions of held-out pictures",
                keys=tuple(wanted),
            )
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
    judge_of(pipeline)
    questionnaire_of(pipeline)
    if wanted not in (HELD_OUT, *JUDGES, *QUESTIONNAIRES):
        read_prompts(Path(wanted))


def check_held_out(pipeline: Pipeline, filter: Output | None) -> None:
    """Raise an InputError where held-out prompts are asked for and no picture is held out.

    Args:
        filter: its output, which knows; None: the shares tell.
    """
    settings = pipeline.filter
    # What the filter has counted, or else the shares that it is asked for.
    counts: Mapping[str, float] = (
        filter.counts
        if filter
        else {"held_out": settings.held_out, "validation": settings.validation}
    )
    if pipeline.evaluate.prompts == HELD_OUT and not any(counts.get(split, 1) for split in SPLITS):
        among = f" among the {filter.counts.get('kept', 0)} that the filter keeps" if filter else ""
        raise InputError(
            "evaluate.prompts: held_out needs pictures kept out of training, and there are"
            f" none{among}",
            where="filter.held_out",
            do=(
                "raise filter.held_out, take more pictures, or name a file of prompts in"
                " evaluate.prompts"
            ),
        )


def identify_prompts(pipeline: Pipeline) -> dict[str, Any]:
    """What the digest covers of the prompts beyond the settings: a file's content instead of its
    path.

    Raises:
        InputError: the file cannot be read.
    """
    wanted = pipeline.evaluate.prompts
    judge = judge_of(pipeline)
    if judge is not None:
        return {"prompts": wanted, "judge": dict(judge.identify())}
    questionnaire = questionnaire_of(pipeline)
    if questionnaire is not None:
        asked = canonical_json(dict(questionnaire.identify()))
        return {"prompts": hashlib.sha256(asked).hexdigest()}
    if wanted == HELD_OUT:
        return {"prompts": wanted}
    texts = "\n".join(read_prompts(Path(wanted)))
    return {"prompts": hashlib.sha256(texts.encode()).hexdigest()}
