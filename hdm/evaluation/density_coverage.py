"""The metric `density_coverage`: how densely generated images lie among real pictures, and how many
of these have one near.
"""

from __future__ import annotations

from hdm.distances.neighbours import DENSITY_NEIGHBOURS, density_and_coverage
from hdm.evaluation.neighbourhoods import measured
from hdm.evaluation.settings import Pipeline
from hdm.scoring.metrics import EMBEDDINGS, Measured, Metric, register
from hdm.store import Outputs

VERSION = 1


def measure(pipeline: Pipeline, outputs: Outputs) -> Measured:
    """Density and coverage of the generated images, and of the real pictures of their captions."""
    is_share = {"density": False, "coverage": True}
    return measured(outputs[EMBEDDINGS], density_and_coverage, DENSITY_NEIGHBOURS, is_share)


METRIC = Metric(
    "density_coverage",
    (EMBEDDINGS,),
    lambda pipeline: {"version": VERSION, "neighbours": DENSITY_NEIGHBOURS},
    measure,
    title="Density and coverage",
    about=(
        "Coverage: the share of real pictures of other captions with a generated image nearer than"
        f" their {DENSITY_NEIGHBOURS}th nearest neighbour. Density: near how many of them a"
        f" generated image lies, by {DENSITY_NEIGHBOURS}; about 1 where both are alike. By the"
        " pipeline's contrastive model."
    ),
    flops=0.0,
)
register(METRIC)
