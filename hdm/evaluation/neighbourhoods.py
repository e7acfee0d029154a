"""What the metrics by nearest neighbours share: from embeddings to scores beside their floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hdm.distances.jackknife import HALVED, Replicates
from hdm.evaluation.contrastive_scores import comparable, prompts_of
from hdm.evaluation.embeddings import read_embedded
from hdm.scoring.metrics import Measured, Score
from hdm.store import Output

Numbers = Callable[..., Mapping[str, Replicates]]
NOTE = (
    "“Of real pictures” is what as many real pictures of the same captions reach. Both sides have"
    " the same number of pictures, on which these numbers depend."
)


def measured(
    embeddings: Output, numbers: Numbers, neighbours: int, is_share: Mapping[str, bool]
) -> Measured:
    """The scores of generated images, and those of real pictures of the same captions.

    Args:
        numbers: by name, of two sets of embeddings and their captions.
        neighbours: how many each picture needs beside itself.
        is_share: name → whether the number is a share.
    """
    compared = read_embedded(embeddings).compared
    if compared is None or not comparable(compared):
        return Measured([], notes=["There are no two captions of real pictures to compare with."])
    captions, others = prompts_of(compared)
    if min(len(set(captions)), len(set(others))) < HALVED:
        needed = f"Too few pictures: this needs {HALVED} different captions on either side."
        return Measured([], notes=[needed])
    scores = []
    # Of generated images first, then the floor.
    for suffix, rows in (("", compared.generated), ("_real", compared.real)):
        for name, found in numbers(rows, compared.reference, captions, others).items():
            label = f"{name} of real pictures" if suffix else name
            scores.append(
                Score.of_estimate(
                    f"{name}{suffix}",
                    found.estimate(),
                    len(rows),
                    "higher",
                    is_share=is_share[name],
                    headline=False,
                    label=label,
                )
            )
    return Measured(scores, notes=[NOTE])
