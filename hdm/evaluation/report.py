"""`report.html`: one page about a pipeline, with everything in it, for whoever wants to know what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
from PIL import Image

from hdm.acquisition import inventory
from hdm.config import Pipeline
from hdm.demo.judge import QUESTIONS
from hdm.evaluation import choosing
from hdm.evaluation.choosing import CHOICES
from hdm.evaluation.curves import PhaseCurve, loss_curve
from hdm.evaluation.evaluate import ANSWERS, METRICS
from hdm.evaluation.exhibits import Exhibition, data_uri
from hdm.evaluation.images import NAME as IMAGES
from hdm.evaluation.metrics import scores_of
from hdm.evaluation.nearest import COPY
from hdm.evaluation.painting import read_prompts_of, read_set
from hdm.files import canonical_json, write_bytes, write_json
from hdm.provenance import provenance
from hdm.redaction import redacted_value
from hdm.statistics import Share
from hdm.store import MANIFEST, Output

PAGE, FACTS, TEMPLATE = "report.html", "report.json", "report.html.j2"
SHARES = (
    "colour", "place", "kind", "free_wordings_kind", "two_objects_kind", "faults_caught", "good_kept",
)  # fmt: skip
"""What the evaluation's summary may hold that tells most in a line."""
KEPT, REJECTED, PAIRS = 24, 8, 12
GRID_PX = 480
TITLES = {
    "one_object": "One object, unseen combinations",
    "free_wordings": "One object, in words that no caption has",
    "two_objects": "Two objects",
    "prompts": "Prompts",
    "combinations": "Combinations that no training picture has",
    "names": "Names that no training picture bears",
}
SHOWN = {
    "one_object": 32,
    "free_wordings": 32,
    "two_objects": 16,
    "prompts": 32,
    "combinations": 32,
    "names": 32,
}


class Made(Protocol):
    """An output that was made, or that was there already."""

    @property
    def output(self) -> Output: ...

    @property
    def cached(self) -> bool: ...


def write_report(
    pipeline: Pipeline,
    made: Sequence[Made],
    folder: Path,
    overrides: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Path:
    """Write `report.html` about what has been made so far, and `report.json` for the list of reports.

    Where a person is to choose names of generated pictures, `choose.html` beside it asks for them.

    Args:
        pipeline: its settings.
        made: outputs in order of their making; a part of the pipeline's will do, and the page then tells of that part.
        folder: of this report alone (`hdm.evaluation.reports.new_folder`).
        overrides: the settings that the run was given, as `stage.field=value`.
        missing: names of the pipeline's other outputs.

    Returns:
        The page's path. The page refers to nothing outside itself but `choose.html`.
    """
    outputs = {one.output.name: one.output for one in made}
    now = datetime.now().astimezone()
    stages = _stages(made)
    facts = {
        "pipeline": pipeline.name,
        "written": now.isoformat(timespec="seconds"),
        "outputs": list(outputs),
        "missing": list(missing),
        "overrides": redacted_value(list(overrides)),
        "seconds": sum(stage["seconds"] for stage in stages),
        "scores": _shares(outputs),
        "measured": scores_of({name: output.summary for name, output in outputs.items()}),
        **provenance(),
    }
    settings = redacted_value(pipeline.model_dump(mode="json"))
    context = {
        **facts,
        "pipeline": pipeline,
        "titles": TITLES,
        "run": folder.name,
        "written": now.strftime("%-d %B %Y, %H:%M %Z"),
        "stages": stages,
        "makers": _makers(made),
        "settings": json.dumps(settings, indent=2, ensure_ascii=False),
        **_data(pipeline, outputs),
        **_training(outputs),
        **_evaluation(pipeline, outputs),
    }
    context["choose"] = _write_choosing(pipeline, outputs, folder)
    context["copy_distance"] = COPY
    page = folder / PAGE
    write_bytes(page, render(TEMPLATE, context))
    write_json(folder / FACTS, facts)
    return page


def render(template: str, context: Mapping[str, Any]) -> bytes:
    """A page from one of the templates beside this file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(percent=_percent, seconds=_seconds, number=_number)
    return environment.get_template(template).render(context).encode()


def _shares(outputs: Mapping[str, Output]) -> dict[str, float]:
    summary = outputs["evaluate"].summary if "evaluate" in outputs else {}
    return {name: summary[name] for name in SHARES if name in summary}


def _makers(made: Sequence[Made]) -> list[dict[str, Any]]:
    """Code, libraries and machine, each with the outputs that were finished with them; none of outputs that do not say."""
    found: dict[bytes, dict[str, Any]] = {}
    for one in made:
        runs = one.output.run().get("runs") or [{}]
        maker = {name: runs[-1].get(name) for name in ("code", "libraries", "machine", "host")}
        told = found.setdefault(canonical_json(maker), {**maker, "outputs": []})
        told["outputs"].append(one.output.name)
    return list(found.values())


def _stages(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for one in made:
        manifest = json.loads((one.output.path / MANIFEST).read_bytes())
        seconds = float(one.output.run().get("seconds", 0.0))
        counts = {
            name.replace("_", " "): count for name, count in one.output.counts.items() if count
        }
        found.append(
            {
                "name": one.output.name, "digest": one.output.digest, "cached": one.cached, "seconds": seconds, "counts": counts,
                "bytes": sum(file.bytes for file in one.output.files), "weights": manifest["weights"], "inputs": manifest["inputs"],
            }
        )  # fmt: skip
    longest = max((stage["seconds"] for stage in found), default=0.0) or 1.0
    return [{**stage, "share": stage["seconds"] / longest} for stage in found]


def _data(pipeline: Pipeline, outputs: Mapping[str, Output]) -> dict[str, Any]:
    if "download" not in outputs:
        return {"funnel": [], "kept": [], "rejections": [], "source": []}
    with Exhibition(pipeline, outputs["download"], outputs.get("filter")) as exhibition:
        return {
            "funnel": exhibition.funnel(),
            "kept": exhibition.kept(KEPT),
            "rejections": exhibition.rejections(REJECTED),
            "source": _source(outputs["download"]),
        }


def _write_choosing(pipeline: Pipeline, outputs: Mapping[str, Output], folder: Path) -> str | None:
    """Write the page to choose names on; its file's name, or None where nobody is asked to."""
    output = outputs.get("evaluate")
    if output is None or IMAGES not in outputs:
        return None
    if all(record.name != CHOICES for record in output.files):
        return None
    told = json.loads(output.file(CHOICES).read_bytes())
    sets = {}
    with Exhibition(pipeline, outputs["download"], None) as exhibition:
        for name, entries in told.items():
            pictures = read_set(outputs[IMAGES].path, name, len(entries))
            training = exhibition.images(entry["nearest"]["key"] for entry in entries)
            sets[name] = choosing.questions(entries, pictures, training)
    context = {"pipeline": pipeline, "sets": sets, "evaluation": output.digest}
    write_bytes(folder / choosing.PAGE, render(choosing.TEMPLATE, context))
    return choosing.PAGE


def _source(download: Output) -> list[str]:
    """What became of the files, lines and captions of the source."""
    if all(record.name != inventory.NAME for record in download.files):
        return []
    return list(inventory.told(json.loads(download.file(inventory.NAME).read_bytes())))


def _training(outputs: Mapping[str, Output]) -> dict[str, Any]:
    phases = [output for name, output in outputs.items() if name.startswith("train.")]
    curves = [_curve(output) for output in phases]
    told = [
        {"name": output.name, "summary": output.summary, "grids": _grids(output)}
        for output in phases
    ]
    return {"phases": told, "curve": loss_curve(curves) if curves else ""}


def _grids(output: Output) -> list[dict[str, Any]]:
    """The pictures that a phase generated while it went, and at its end; none where it did so at its end alone."""
    names = sorted(record.name for record in output.files if record.name.startswith("generated-"))
    grids = [(int(name.partition("-")[2].removesuffix(".png")), name) for name in names]
    if grids and grids[-1][0] < output.counts["images_seen"]:
        grids.append((output.counts["images_seen"], "generated.png"))
    return [{"seen": seen, "image": _grid(output.file(name))} for seen, name in grids]


def _grid(path: Path) -> str:
    with Image.open(path) as picture:
        return data_uri(np.asarray(picture.convert("RGB")), GRID_PX)


def _curve(output: Output) -> PhaseCurve:
    lines = [
        json.loads(line) for line in output.file("metrics.jsonl").read_text().splitlines() if line
    ]
    losses = [
        (line["num_images_seen"], line["loss"]) for line in lines if line.get("loss") is not None
    ]
    held = [
        (line["num_images_seen"], line["validation_loss"])
        for line in lines
        if line.get("validation_loss") is not None
    ]
    last = max((line["num_images_seen"] for line in lines), default=0)
    return PhaseCurve(output.name.removeprefix("train."), last, losses, held)


def _evaluation(pipeline: Pipeline, outputs: Mapping[str, Output]) -> dict[str, Any]:
    output = outputs.get("evaluate")
    if output is None or IMAGES not in outputs:
        return {
            "metrics": {}, "sets": [], "pairs": [], "questions": QUESTIONS, "audit_shares": {},
            "nearness": "",
        }  # fmt: skip
    metrics = json.loads(output.file(METRICS).read_bytes())
    answers = json.loads(output.file(ANSWERS).read_bytes()) if "accuracy" in metrics else {}
    sets = [
        _shown(outputs[IMAGES], name, min(count, SHOWN[name]), answers.get(name, []))
        for name, count in metrics["images"].items()
        if name in SHOWN
    ]
    return {
        "metrics": metrics, "sets": sets, "pairs": _pairs(pipeline, outputs, metrics), "questions": QUESTIONS,
        "audit_shares": _audit_shares(metrics), "nearness": _nearness(metrics.get("distances", {})),
    }  # fmt: skip


def _nearness(distances: Mapping[str, Any]) -> str:
    """What the distances amount to, in a sentence; "" without any."""
    if not distances:
        return ""
    apart = distances["frechet"]["difference"]
    if abs(apart["value"]) <= apart["half"]:
        told = "lie as near, within the interval, as"
    elif apart["value"] > 0:
        told = "lie farther away than"
    else:
        told = "lie nearer, as pictures do that vary less, than"
    return (
        "From real pictures of other captions, generated images "
        f"{told} the real pictures of the same captions (Fréchet distance)."
    )


def _audit_shares(metrics: Mapping[str, Any]) -> dict[str, Any]:
    if "audit" not in metrics:
        return {}
    good, caught = metrics["audit"]["good"], metrics["audit"]["caught"]
    return {
        "good": Share(good["kept"], good["planted"]).to_dict(),
        "caught": Share(caught["caught"], caught["planted"]).to_dict(),
    }


def _shown(
    output: Output, name: str, count: int, answers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The first images of a set, with their prompts and what the judge says of them."""
    prompts = read_prompts_of(output.path, name, count)
    images = [data_uri(picture) for picture in read_set(output.path, name, count)]
    marks = [
        {question: answer[question] for question in QUESTIONS} for answer in answers[:count]
    ] or [{}] * count
    tiles = [
        {"image": image, "prompt": prompt, "marks": mark}
        for image, prompt, mark in zip(images, prompts, marks, strict=True)
    ]
    return {"name": name, "tiles": tiles}


def _pairs(
    pipeline: Pipeline, outputs: Mapping[str, Output], metrics: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Images generated from captions of real pictures, beside these."""
    images = metrics["images"]
    keys = metrics["real"]["keys"][
        : min(images.get("held_out", 0), PAIRS if len(images) > 1 else 2 * PAIRS)
    ]
    if not keys or "download" not in outputs:
        return []
    output = outputs[IMAGES]
    generated = [data_uri(picture) for picture in read_set(output.path, "held_out", len(keys))]
    prompts = read_prompts_of(output.path, "held_out", len(keys))
    with Exhibition(pipeline, outputs["download"], None) as exhibition:
        real = exhibition.images(keys)
    return [
        {"prompt": p, "generated": g, "real": r}
        for p, g, r in zip(prompts, generated, real, strict=True)
    ]


def _percent(share: float) -> str:
    return (
        f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
        if 0.0005 < share < 0.9995
        else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
    )


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
