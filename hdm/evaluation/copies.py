"""The metric `copies`: images that are copies of training pictures, in sets with choices."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from hdm.evaluation.choosing import CHOICES, copies, entries
from hdm.evaluation.images import read_generated
from hdm.evaluation.nearest import COPY, nearest_training
from hdm.evaluation.settings import Pipeline
from hdm.scoring.judges import QUESTIONNAIRES
from hdm.scoring.metrics import IMAGES, Measured, Metric, Score, Table, register
from hdm.statistics import Share
from hdm.store import Outputs

VERSION = 1
COLUMNS = ("Images", "copies", "pictures", "nearest", "median distance")


def measure(pipeline: Pipeline, outputs: Outputs) -> Measured:
    """The share of copies in each set with choices, and the data of the page to choose on."""
    # Only sets from whose names a person chooses: these ask whether a picture was drawn or copied.
    generated = read_generated(pipeline, outputs)
    sets = [prompts for prompts in generated.sets if prompts.choices]
    pictures: list[np.ndarray] = []
    for prompts in sets:
        pictures += generated.pictures[prompts.name]
    # All sets at once: every training picture is decoded only once.
    all_nearest = iter(nearest_training(pipeline, outputs, pictures))
    scores: list[Score] = []
    rows: list[tuple[str, ...]] = []
    choices: dict[str, Any] = {}
    for prompts in sets:
        # In the order in which the sets' pictures were joined above.
        nearest = list(islice(all_nearest, len(prompts.texts)))
        choices[prompts.name] = entries(prompts, nearest)
        counts = copies(nearest)
        num_copies = counts["copies"]
        total = counts["total"]
        low, high = Share(num_copies, total).interval
        scores.append(
            Score(
                f"copies_{prompts.name}",
                num_copies / total,
                low,
                high,
                total,
                "lower",
                is_share=True,
                label="copies",
                group=prompts.title,
            )
        )
        distances = (f"{counts['nearest']:.1f}", f"{counts['median']:.1f}")
        rows.append((prompts.title, str(num_copies), str(total), *distances))
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
    applies=lambda pipeline: pipeline.evaluate.prompts in QUESTIONNAIRES,
)
register(METRIC)
