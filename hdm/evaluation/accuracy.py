"""The metric `accuracy`: a judge's verdicts on images of prompts with known answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hdm.evaluation.painting import read_set
from hdm.evaluation.real import normal_prompt
from hdm.evaluation.settings import Pipeline
from hdm.scoring.judges import JUDGES, Judge, PromptSet, judge_of
from hdm.scoring.metrics import IMAGES, Measured, Metric, Score, register
from hdm.statistics import Share
from hdm.store import Outputs

VERSION = 1
ALL = "all"
AGREEMENT = "The judge agrees with the eye on"
Answers = Sequence[Mapping[str, bool]]


def measure(pipeline: Pipeline, outputs: Outputs) -> Measured:
    """The share of correct images in each set, by question and for all questions together."""
    judge = _judge(pipeline)
    settings = pipeline.evaluate
    agreement = judge.agreement()
    scores: list[Score] = []
    marks: dict[str, Answers] = {}
    # The prompts are made again: equal settings give the prompts from which the images were
    # generated.
    for number, prompts in enumerate(judge.prompt_sets(settings.num_images, settings.seed)):
        pictures = read_set(outputs[IMAGES].path, prompts.name, len(prompts.texts))
        pairs = zip(prompts.asked, pictures, strict=True)
        marks[prompts.name] = [dict(judge.score(asked, picture)) for asked, picture in pairs]
        # The first set is the most telling; its scores have plain names.
        prefix = f"{prompts.name}_" if number else ""
        scores += _of_set(prompts, marks[prompts.name], prefix, agreement)
    for question, share in agreement.items():
        name = f"judge_agrees_{question}"
        labels = {"label": question, "group": AGREEMENT, "headline": False}
        scores.append(Score.of_share(name, share, **labels))
    return Measured(scores, marks=marks)


def accuracy(texts: Sequence[str], answers: Answers) -> dict[str, Share]:
    """Share of correct pictures, by question and for `all` questions together.

    A repeated prompt counts once in the interval.
    """
    total = len(answers)
    distinct = len({normal_prompt(text) for text in texts})
    shares = {}
    for name in answers[0] if answers else ():
        right = sum(answer[name] for answer in answers)
        shares[name] = Share(right, total, distinct)
    shares[ALL] = Share(sum(all(answer.values()) for answer in answers), total, distinct)
    return shares


def _of_set(
    prompts: PromptSet, answers: Answers, prefix: str, agreement: Mapping[str, Share]
) -> Iterator[Score]:
    for question, share in accuracy(prompts.texts, answers).items():
        agrees = agreement.get(question)
        yield Score.of_share(
            f"{prefix}{question}",
            share,
            label="all of them" if question == ALL else question,
            group=prompts.title or prompts.name,
            headline=question in prompts.headline,
            note=f"by a judge that agrees with the eye on {agrees.value:.0%}" if agrees else "",
        )


def _judge(pipeline: Pipeline) -> Judge:
    judge = judge_of(pipeline)
    assert judge is not None
    return judge


def _identify(pipeline: Pipeline) -> dict[str, Any]:
    judge = _judge(pipeline)
    # In the digest, because the scores' notes quote it.
    agreement = {name: [one.right, one.total] for name, one in judge.agreement().items()}
    return {"version": VERSION, "judge": dict(judge.identify()), "agreement": agreement}


METRIC = Metric(
    "accuracy",
    (IMAGES,),
    _identify,
    measure,
    title="Does the picture show what was asked for?",
    about="A judge that sees only pixels says whether what each prompt asks for is there.",
    applies=lambda pipeline: pipeline.evaluate.prompts in JUDGES,
)
register(METRIC)
