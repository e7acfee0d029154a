"""The metric `precision_recall`: whether generated images lie among real pictures, and these among
generated ones.
"""

from __future__ import annotations

from hdm.distances.neighbours import PRECISION_NEIGHBOURS, precision_and_recall
from hdm.evaluation.neighbourhoods import measured
from hdm.evaluation.settings import Pipeline
from hdm.scoring.metrics import EMBEDDINGS, Measured, Metric, register
from hdm.store import Outputs

VERSION = 1
SHARES = ("precision", "recall")


def measure(pipeline: Pipeline, outputs: Outputs) -> Measured:
    """Precision and recall of the generated images, and of the real pictures of their captions."""
    return measured(
        outputs[EMBEDDINGS], precision_and_recall, PRECISION_NEIGHBOURS, dict.fromkeys(SHARES, True)
    )


METRIC = Metric(
    "precision_recall",
    (EMBEDDINGS,),
    lambda pipeline: {"version": VERSION, "neighbours": PRECISION_NEIGHBOURS},
    measure,
    title="Precision and recall",
    about=(
        "Precision: the share of generated images that lie among real pictures of other captions."
        " Recall: the share of these that lie among generated images. Among: nearer to one of them"
        f" than its {PRECISION_NEIGHBOURS}rd nearest neighbour. By the pipeline's contrastive"
        " model."
    ),
    flops=0.0,
)
register(METRIC)
