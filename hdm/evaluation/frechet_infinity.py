"""The metric `frechet_infinity`: the Fréchet distance that endlessly many images would have."""

from __future__ import annotations

from hdm.distances.frechet import ENOUGH_TO_EXTRAPOLATE, extrapolated_replicates
from hdm.evaluation.contrastive_scores import comparable, prompts_of
from hdm.evaluation.embeddings import read_embedded
from hdm.evaluation.settings import Pipeline
from hdm.scoring.metrics import EMBEDDINGS, Measured, Metric, Score, register
from hdm.store import Outputs

VERSION = 1
TIMES_DIMENSIONS = 4
"""Subsets of half of that many dimensions begin the line."""


def measure(pipeline: Pipeline, outputs: Outputs) -> Measured:
    """The distance of generated images, and its floor, that of the real pictures."""
    compared = read_embedded(outputs[EMBEDDINGS]).compared
    count = len(compared.generated) if compared and comparable(compared) else 0
    size = compared.generated.shape[1] if compared else 0
    needed = max(ENOUGH_TO_EXTRAPOLATE, TIMES_DIMENSIONS * size)
    if compared is None or count < needed:
        return Measured(
            [],
            notes=[f"Needs {needed:,} held-out pictures on either side; there are {count:,}."],
        )
    captions, others = prompts_of(compared)
    scores = []
    for suffix, rows in (("", compared.generated), ("_real", compared.real)):
        found = extrapolated_replicates(rows, compared.reference, captions, others).estimate()
        name = f"frechet_infinity{suffix}"
        label = "of real pictures" if suffix else "of generated images"
        scores.append(Score.of_estimate(name, found, count, "lower", headline=False, label=label))
    return Measured(scores)


METRIC = Metric(
    "frechet_infinity",
    (EMBEDDINGS,),
    lambda pipeline: {"version": VERSION},
    measure,
    title="Fréchet distance without bias",
    about=(
        "What the Fréchet distance would be of endlessly many pictures: a line through those of 15"
        " subsets (arXiv 1911.07023)."
    ),
    applies=lambda pipeline: pipeline.evaluate.num_images >= ENOUGH_TO_EXTRAPOLATE,
    flops=0.0,
)
register(METRIC)
