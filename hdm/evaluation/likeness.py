"""The metric `likeness`: similarity of images to prompts and to real pictures, by the pipeline's
contrastive model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from hdm.evaluation.contrastive_scores import (
    Distances,
    comparable,
    cosines,
    frechet_distances,
    kernel_distances,
)
from hdm.evaluation.embeddings import Compared, read_embedded
from hdm.evaluation.settings import Pipeline
from hdm.scoring.metrics import EMBEDDINGS, Direction, Measured, Metric, Score, Table, register
from hdm.statistics import Estimate
from hdm.store import Outputs

VERSION = 2
KINDS = ("generated", "real", "exchanged")
CLIP_NOTE = (
    "Cosines of image and prompt, with 95 % intervals of the mean from a bootstrap of prompts, of"
    " which a repeated one counts once. Exchanged prompts show the score of no similarity at all."
)
SELECTED_NOTE = (
    "The same model chose the training pictures (filter.min_clip_similarity), and so is no"
    " independent judge of images: a model that learnt its taste scores well."
)
DISTANCES = {
    "frechet": "Fréchet distance",
    "kernel": "Kernel distance (squared MMD, unbiased, × 1000)",
}
FLOOR_NOTE = (
    "“Real” is the floor: as many real pictures, of the same captions, against the same pictures of"
    " other captions."
)
BIAS_NOTE = (
    "The Fréchet distance is mostly bias: the floor is more than half of it. It says nothing of"
    " the model until there are more pictures."
)
LARGE = 5_000
"""Fréchet distances of fewer pictures are hardly more than their bias."""


def measure(pipeline: Pipeline, outputs: Outputs) -> Measured:
    """Cosines by set, and distances for the captions of held-out pictures."""
    embedded = read_embedded(outputs[EMBEDDINGS])
    by_set = {name: cosines(rows) for name, rows in embedded.sets.items()}
    counts = {name: len(rows.prompts) for name, rows in embedded.sets.items()}
    scores = list(_cosine_scores(by_set, counts))
    tables = [_cosine_table(by_set, counts)]
    notes = [CLIP_NOTE]
    if pipeline.filter.min_clip_similarity is not None:
        notes.append(SELECTED_NOTE)
    details: dict[str, Any] = {"clip_score": _plain(by_set), "distances": {}}
    compared = embedded.compared
    if compared is not None and comparable(compared):
        distances = {"frechet": frechet_distances(compared), "kernel": kernel_distances(compared)}
        scores += _distance_scores(distances, compared)
        tables.append(_distance_table(distances, compared))
        notes += _distance_notes(distances, compared)
        details["distances"] = _described(distances, compared)
    return Measured(scores, tables, notes, details=details)


def _plain(by_set: Mapping[str, Mapping[str, Estimate | None]]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, kinds in by_set.items():
        plain[name] = {kind: found and asdict(found) for kind, found in kinds.items()}
    return plain


def _cosine_scores(
    by_set: Mapping[str, Mapping[str, Estimate | None]], counts: Mapping[str, int]
) -> Iterator[Score]:
    for name, kinds in by_set.items():
        for score, kind in ((f"clip_score_{name}", "generated"), ("clip_score_real", "real")):
            # Only a set whose prompts are captions of real pictures has the second.
            found = kinds.get(kind)
            if found is not None:
                yield _score(score, found, counts[name], "higher")


def _distance_scores(
    distances: Mapping[str, Distances | None], compared: Compared
) -> Iterator[Score]:
    count = len(compared.generated)
    for name, found in distances.items():
        if found is not None:
            yield _score(f"{name}_distance", found.generated, count, "lower")
            yield _score(f"{name}_distance_real", found.real, count, "lower")


def _score(name: str, found: Estimate, count: int, direction: Direction) -> Score:
    return Score.of_estimate(name, found, count, direction, headline=False)


def _cosine_table(
    by_set: Mapping[str, Mapping[str, Estimate | None]], counts: Mapping[str, int]
) -> Table:
    columns = ("Cosine", "generated", "real pictures", "exchanged prompts", "images")
    rows = []
    for name, kinds in by_set.items():
        cells = [_cell(kinds.get(kind), ".3f") for kind in KINDS]
        rows.append((name.replace("_", " "), *cells, str(counts[name])))
    return Table(columns, rows)


def _distance_table(distances: Mapping[str, Distances | None], compared: Compared) -> Table:
    split = compared.split.replace("_", "-")
    title = f"Distance to {len(compared.generated)} {split} pictures of other captions"
    rows = []
    for name, words in DISTANCES.items():
        found = distances[name]
        if found is None:
            cells = [_refusal(compared), "–", "–"]
        else:
            cells = [
                _cell(one, ".4g", ".2g") for one in (found.generated, found.real, found.difference)
            ]
        rows.append((words, *cells))
    return Table((title, "generated", "real", "generated − real"), rows)


def _cell(found: Estimate | None, form: str, form_of_half: str = ".3f") -> str:
    if found is None:
        return "–"
    around = "" if found.half is None else f" ± {found.half:{form_of_half}}"
    return f"{found.value:{form}}{around}"


def _refusal(compared: Compared) -> str:
    return f"needs more than {compared.generated.shape[1]} pictures"


def _distance_notes(distances: Mapping[str, Distances | None], compared: Compared) -> Iterator[str]:
    kernel = distances["kernel"]
    assert kernel is not None
    yield _nearness(kernel)
    yield _explained(compared)
    yield FLOOR_NOTE
    frechet = distances["frechet"]
    if frechet is not None and frechet.is_mostly_bias:
        yield BIAS_NOTE


def _nearness(found: Distances) -> str:
    """A sentence on what the distances mean."""
    apart = found.difference
    # A difference whose interval holds 0 shows nothing either way.
    if apart.low is None or apart.high is None or apart.low <= 0 <= apart.high:
        verdict = "lie as near, within the interval, as"
    elif apart.value > 0:
        verdict = "lie farther away than"
    else:
        verdict = "lie nearer, as pictures do that vary less, than"
    return (
        "From real pictures of other captions, generated images "
        f"{verdict} the real pictures of the same captions (kernel distance)."
    )


def _explained(compared: Compared) -> str:
    split = compared.split.replace("_", "-")
    shape = ", all of about the generated shape" if compared.same_shape else ""
    return (
        f"In the {compared.generated.shape[1]} dimensions of the same model. The images are"
        f" generated from the captions of {len(compared.generated)} {split} pictures"
        f" ({len(set(compared.captions))} different captions); the column “real” has these pictures"
        f" themselves. Both are compared with as many pictures of other captions{shape}. ± is a 95"
        " % interval over captions. Fréchet distances of few pictures are too high, in both columns"
        f" alike; below {LARGE:,} pictures read the kernel distance. These are not FID or CMMD"
        " figures of other papers, which use other models."
    )


def _described(distances: Mapping[str, Distances | None], compared: Compared) -> dict[str, Any]:
    described: dict[str, Any] = {
        "num_compared": len(compared.generated),
        "num_captions": len(set(compared.captions)),
        "embed_size": compared.generated.shape[1],
    }
    for name, found in distances.items():
        if found is not None:
            described[name] = asdict(found)
    frechet = distances["frechet"]
    if frechet is not None:
        described["frechet"]["mostly_bias"] = frechet.is_mostly_bias
    return described


METRIC = Metric(
    "likeness",
    (EMBEDDINGS,),
    lambda pipeline: {"version": VERSION},
    measure,
    title="Likeness to prompts and to real pictures",
    about="By the pipeline's contrastive model.",
    flops=0.0,
)
register(METRIC)
