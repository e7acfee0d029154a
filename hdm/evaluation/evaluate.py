"""The stage `evaluate`: measure what can be measured of the generated images (`hdm.evaluation.images`).

answers.json         what the judge says of each image, where the truth is known
choices.json         where a person chooses from names: the names, and the nearest training picture, of each image
metrics.json         every number with its count and interval
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from hdm.config import Pipeline
from hdm.data.tables import read_tables
from hdm.demo.judge import QUESTIONS, SceneJudge
from hdm.errors import InputError, raised_by
from hdm.evaluation.choosing import CHOICES, copies, entries
from hdm.evaluation.images import Generated, read_generated
from hdm.evaluation.measuring import accuracy, ask, likeness
from hdm.evaluation.nearest import nearest_training
from hdm.evaluation.painting import image_size
from hdm.evaluation.prompts import check_held_out, check_prompts
from hdm.generation.pictures import check_sides
from hdm.models.autoencoder import pipeline_latent_shape
from hdm.models.components import locate, resolve, weights_digest
from hdm.models.contrastive import load_contrastive
from hdm.models.devices import check_device, choose_device
from hdm.store import Draft, Identity, Output, Store

SCHEMA = 5
SHOWN_KEYS = 64  # of real pictures, named for whoever wants to look at them
METRICS, ANSWERS = "metrics.json", "answers.json"


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the measurement depends on: the images, the real pictures, and the model that measures.

    Raises:
        InputError: a model is not on this machine.
    """
    components = resolve(pipeline.components)
    weights = {}
    if components.contrastive:
        weights["contrastive"] = weights_digest(components.contrastive)
    return Identity("evaluate", SCHEMA, {}, dict(inputs), weights)


def preflight(pipeline: Pipeline, made: Mapping[str, Output]) -> Iterator[InputError]:
    """What of `evaluate` cannot work.

    Args:
        made: where `filter` is in it, its counts say whether there are pictures to compare with.
    """
    yield from raised_by(
        partial(check_prompts, pipeline),
        partial(check_held_out, pipeline, made.get("filter")),
        partial(check_device, pipeline.evaluate.device, "evaluate.device"),
        partial(_models_are_here, pipeline),
        partial(_size_fits, pipeline),
    )


def _models_are_here(pipeline: Pipeline) -> None:
    components = resolve(pipeline.components)
    for reference in (components.need("text_encoder"), components.contrastive):
        if reference is not None:
            locate(reference)


def _size_fits(pipeline: Pipeline) -> None:
    shape = pipeline_latent_shape(pipeline)
    if shape is not None and pipeline.evaluate.size is not None:
        unit = shape.downscale * pipeline.train.model.patch_size
        check_sides(*image_size(pipeline), unit, "evaluate.size")


def make(
    pipeline: Pipeline,
    identity: Identity,
    inputs: Mapping[str, Output],
    store: Store,
    judge: SceneJudge | None,
) -> Output:
    """Measure the images.

    Returns:
        An output as described above; its summary holds the headline numbers as plain fractions.
    """
    generated = read_generated(pipeline, inputs, judge)
    with store.draft(identity) as draft:
        metrics = _measure(pipeline, inputs, draft, generated, judge)
        if not draft.has(METRICS):
            draft.write_json(METRICS, metrics)
        return draft.commit(_headlines(metrics))


def _measure(
    pipeline: Pipeline,
    inputs: Mapping[str, Output],
    draft: Draft,
    generated: Generated,
    judge: SceneJudge | None,
) -> dict[str, Any]:
    real, sets, pictures = generated.real, generated.sets, generated.pictures
    metrics: dict[str, Any] = {
        "images": {prompts.name: len(prompts.texts) for prompts in sets},
        "real": {
            "split": real.split,
            "same_shape": real.same_shape,
            "count": len(real.captions),
            "keys": list(real.captions)[:SHOWN_KEYS],
        },
    }
    if judge is not None:
        answers = {
            prompts.name: ask(judge, prompts, pictures[prompts.name])
            for prompts in sets
            if prompts.asked
        }
        metrics["accuracy"] = {name: accuracy(found) for name, found in answers.items()}
        metrics["agreement"] = {
            question: share.to_dict() for question, share in judge.agreement().items()
        }
        metrics["audit"] = judge.audit(
            read_tables(inputs["download"], "samples"), read_tables(inputs["filter"], "scores")
        )
        if not draft.has(ANSWERS):
            draft.write_json(ANSWERS, answers)
    if any(prompts.choices for prompts in sets):
        metrics["copies"] = _choices(pipeline, inputs, draft, generated)
    components = resolve(pipeline.components)
    if components.contrastive:
        contrastive = load_contrastive(
            components, choose_device(pipeline.evaluate.device, "the contrastive model")
        )
        metrics |= likeness(contrastive, inputs["filter.contrastive"], sets, pictures, real)
    return metrics


def _choices(
    pipeline: Pipeline, inputs: Mapping[str, Output], draft: Draft, generated: Generated
) -> dict[str, Any]:
    """Write what a person chooses from; how many of these images are copies of training pictures."""
    chosen = [prompts for prompts in generated.sets if prompts.choices]
    every = [picture for prompts in chosen for picture in generated.pictures[prompts.name]]
    found = iter(nearest_training(pipeline, inputs, every))
    nearest = {prompts.name: [next(found) for _ in prompts.texts] for prompts in chosen}
    if not draft.has(CHOICES):
        told = {prompts.name: entries(prompts, nearest[prompts.name]) for prompts in chosen}
        draft.write_json(CHOICES, told)
    return {name: copies(of_set) for name, of_set in nearest.items()}


def _headlines(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers that a person asks for first, flat: fractions, cosines, distances."""
    found: dict[str, float] = {}
    for name, shares in metrics.get("accuracy", {}).items():
        prefix = "" if name == "one_object" else f"{name}_"
        found |= {f"{prefix}{question}": shares[question]["share"] for question in QUESTIONS}
    found |= {
        f"judge_agrees_{question}": share["share"]
        for question, share in metrics.get("agreement", {}).items()
    }
    for name, counted in metrics.get("copies", {}).items():
        found[f"copies_{name}"] = counted["copies"] / counted["total"]
    if "audit" in metrics:
        good, caught = metrics["audit"]["good"], metrics["audit"]["caught"]
        found["good_kept"] = good["kept"] / max(1, good["planted"])
        found["faults_caught"] = caught["caught"] / max(1, caught["planted"])
    for name, scores in metrics.get("clip_score", {}).items():
        found[f"clip_score_{name}"] = scores["generated"]["mean"]
        if "real" in scores:
            found["clip_score_real"] = scores["real"]["mean"]
    for name, values in metrics.get("distances", {}).items():
        if isinstance(values, dict):
            found |= {
                f"{name}_distance": values["generated"]["value"],
                f"{name}_distance_real": values["real"]["value"],
            }
    return found
