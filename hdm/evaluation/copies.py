"""Which images are copies of training pictures, where a person chooses from names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hdm.config import Pipeline
from hdm.evaluation.choosing import CHOICES, copies, entries
from hdm.evaluation.images import read_generated
from hdm.evaluation.nearest import COPY, nearest_training
from hdm.evaluation.prompts import EMOJI
from hdm.scoring.metrics import IMAGES, Measured, Metric, Score, Table, register
from hdm.statistics import Share
from hdm.store import Output

VERSION = 1
COLUMNS = ("Images", "copies", "pictures", "nearest", "median distance")


def measure(pipeline: Pipeline, outputs: Mapping[str, Output]) -> Measured:
    """The share of copies in each set that names are chosen for, and what the page to choose on
    needs.
    """
    generated = read_generated(pipeline, outputs)
    chosen = [prompts for prompts in generated.sets if prompts.choices]
    every = [picture for prompts in chosen for picture in generated.pictures[prompts.name]]
    found = iter(nearest_training(pipeline, outputs, every))
    scores: list[Score] = []
    rows: list[tuple[str, ...]] = []
    choices: dict[str, Any] = {}
    for prompts in chosen:
        nearest = [next(found) for _ in prompts.texts]
        choices[prompts.name] = entries(prompts, nearest)
        counted = copies(nearest)
        low, high = Share(counted["copies"], counted["total"]).interval
        value = counted["copies"] / counted["total"]
        scores.append(
            Score(
                f"copies_{prompts.name}", value, low, high, counted["total"], "lower",
                is_share=True, label="copies", group=prompts.title,
            )
        )  # fmt: skip
        distances = (f"{counted['nearest']:.1f}", f"{counted['median']:.1f}")
        counts = (str(counted["copies"]), str(counted["total"]))
        rows.append((prompts.title, *counts, *distances))
    return Measured(scores, [Table(COLUMNS, rows)], details={CHOICES: choices})


METRIC = Metric(
    "copies",
    (IMAGES, "download", "filter", "caption"),
    lambda pipeline: {"version": VERSION},
    measure,
    title="Copies of training pictures",
    about=(
        "Distance to the nearest training picture: root mean square of 32 × 32 pixels, in grey"
        f" levels; up to {COPY:g} a picture counts as a copy. The page to choose names on shows"
        " each image beside its nearest."
    ),
    applies=lambda pipeline: pipeline.evaluate.prompts == EMOJI,
)
register(METRIC)
