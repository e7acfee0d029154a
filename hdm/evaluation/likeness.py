"""The metric `likeness`: similarity of images to prompts and to real pictures, by the pipeline's
contrastive model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from hdm.errors import InputError, raised_by
from hdm.evaluation.contrastive_scores import likeness
from hdm.evaluation.images import Generated, read_generated
from hdm.evaluation.settings import Pipeline
from hdm.models.components import is_named, locate, resolve, weights_digest
from hdm.models.contrastive import load_contrastive
from hdm.models.devices import choose_device
from hdm.scoring.metrics import IMAGES, Measured, Metric, Score, Table, register
from hdm.statistics import CONFIDENCE_95
from hdm.store import Outputs

VERSION = 1
EMBEDDINGS = "filter.contrastive"
CLIP_NOTE = (
    "Cosines of image and prompt; ± is a 95 % interval of the mean, in which a repeated prompt "
    "counts once. Exchanged prompts show the score of no similarity at all."
)
DISTANCES = {
    "frechet": "Fréchet distance",
    "kernel": "Kernel distance (squared MMD, unbiased, × 1000)",
}


def measure(pipeline: Pipeline, outputs: Outputs) -> Measured:
    """Cosines by set, and distances for the captions of held-out pictures; see
    `contrastive_scores.likeness`.
    """
    generated = read_generated(pipeline, outputs)
    device = choose_device(pipeline.evaluate.device, "the contrastive model")
    contrastive = load_contrastive(resolve(pipeline.components), device)
    results = likeness(
        contrastive, outputs[EMBEDDINGS], generated.sets, generated.pictures, generated.real
    )
    cosines = results["clip_score"]
    distances = results["distances"]
    scores = [*_cosines(cosines), *_distances(distances)]
    tables = [_cosine_table(cosines)]
    notes = [CLIP_NOTE]
    if distances:
        tables.append(_distance_table(distances, generated))
        notes += [_nearness(distances), _explained(distances, generated)]
    return Measured(scores, tables, notes, details=results)


def _cosines(by_set: Mapping[str, Any]) -> Iterator[Score]:
    for name, kinds in by_set.items():
        for kind, score in (
            (f"clip_score_{name}", kinds["generated"]),
            # Only for a set whose prompts are captions of real pictures.
            ("clip_score_real", kinds.get("real")),
        ):
            if score is None or score["mean"] is None:
                continue
            error = score["standard_error"]
            half = None if error is None else CONFIDENCE_95 * error
            yield _score(kind, score["mean"], half, score["count"], "higher")


def _distances(distances: Mapping[str, Any]) -> Iterator[Score]:
    for name in DISTANCES if distances else ():
        for kind, suffix in (("generated", ""), ("real", "_real")):
            distance = distances[name][kind]
            value = distance["value"]
            count = distances["num_compared"]
            yield _score(f"{name}_distance{suffix}", value, distance["half"], count, "lower")


def _score(name: str, value: float, half: float | None, count: int, better: Any) -> Score:
    low = None if half is None else value - half
    high = None if half is None else value + half
    return Score(name, value, low, high, count, better, headline=False)


def _cosine_table(by_set: Mapping[str, Any]) -> Table:
    kinds = ("generated", "real", "exchanged")
    columns = ("Cosine", "generated", "real pictures", "exchanged prompts", "images")
    rows = []
    for name, scores in by_set.items():
        cells = [_cosine_cell(scores.get(kind)) for kind in kinds]
        rows.append((name.replace("_", " "), *cells, str(scores["generated"]["count"])))
    return Table(columns, rows)


def _cosine_cell(score: Mapping[str, Any] | None) -> str:
    if score is None or score["mean"] is None:
        return "–"
    error = score["standard_error"]
    around = "" if error is None else f" ± {CONFIDENCE_95 * error:.3f}"
    return f"{score['mean']:.3f}{around}"


def _distance_table(distances: Mapping[str, Any], generated: Generated) -> Table:
    split = generated.real.split.replace("_", "-")
    title = f"Distance to {distances['num_compared']} {split} pictures of other captions"
    rows = []
    for name, words in DISTANCES.items():
        cells = [words]
        for kind in ("generated", "real", "difference"):
            distance = distances[name][kind]
            cells.append(f"{distance['value']:.4g} ± {distance['half']:.2g}")
        rows.append(cells)
    return Table((title, "generated", "real", "generated − real"), rows)


def _nearness(distances: Mapping[str, Any]) -> str:
    """A sentence on what the distances mean."""
    apart = distances["frechet"]["difference"]
    # A difference within its interval shows nothing either way.
    if abs(apart["value"]) <= apart["half"]:
        verdict = "lie as near, within the interval, as"
    elif apart["value"] > 0:
        verdict = "lie farther away than"
    else:
        verdict = "lie nearer, as pictures do that vary less, than"
    return (
        "From real pictures of other captions, generated images "
        f"{verdict} the real pictures of the same captions (Fréchet distance)."
    )


def _explained(distances: Mapping[str, Any], generated: Generated) -> str:
    split = generated.real.split.replace("_", "-")
    shape = ", all of about the generated shape" if generated.real.same_shape else ""
    return (
        f"In the {distances['embed_size']} dimensions of the same model. The images are generated"
        f" from the captions of {distances['num_compared']} {split} pictures"
        f" ({distances['num_captions']} different captions); the column “real” has these pictures"
        f" themselves. Both are compared with as many pictures of other captions{shape}. ± is a 95"
        " % interval from a bootstrap over captions. Fréchet distances of few pictures are too"
        " high, in both columns alike; kernel distances are not. These are not FID or CMMD figures"
        " of other papers, which use other models."
    )


def _weights(pipeline: Pipeline) -> dict[str, str]:
    model = resolve(pipeline.components).need("contrastive")
    return {"contrastive": weights_digest(model)}


def _applies(pipeline: Pipeline) -> bool:
    return is_named(pipeline.components, "contrastive")


def _preflight(pipeline: Pipeline) -> Iterator[InputError]:
    yield from raised_by(partial(locate, resolve(pipeline.components).need("contrastive")))


METRIC = Metric(
    "likeness",
    (IMAGES, EMBEDDINGS, "filter", "caption"),
    lambda pipeline: {"version": VERSION},
    measure,
    title="Likeness to prompts and to real pictures",
    about="By the pipeline's contrastive model.",
    applies=_applies,
    weights=_weights,
    preflight=_preflight,
)
register(METRIC)
