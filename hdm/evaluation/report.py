"""`report.html`: one page about a pipeline, with everything in it, for whoever wants to know what
came of it.
"""

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
from hdm.evaluation import choosing
from hdm.evaluation.choosing import CHOICES
from hdm.evaluation.curves import PhaseCurve, loss_curve
from hdm.evaluation.exhibits import Exhibition, data_uri
from hdm.evaluation.images import SETS
from hdm.evaluation.painting import read_prompts_of, read_set
from hdm.files import canonical_json, write_bytes, write_json
from hdm.provenance import provenance
from hdm.redaction import redacted_value
from hdm.scoring.metrics import (
    IMAGES,
    Finding,
    headlines,
    is_measured,
    read_finding,
    scores_of,
)
from hdm.store import MANIFEST, Output

PAGE = "report.html"
FACTS = "report.json"
TEMPLATE = "report.html.j2"
KEPT = 24
REJECTED = 8
PAIRS = 12
GRID_PX = 480
SHOWN = 32  # images of a set


class ReportedOutput(Protocol):
    """An output that was made, or that was there already."""

    @property
    def output(self) -> Output: ...

    @property
    def cached(self) -> bool: ...


def write_report(
    pipeline: Pipeline,
    made: Sequence[ReportedOutput],
    folder: Path,
    overrides: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Path:
    """Write `report.html` about what has been made so far, and `report.json` for the list of
    reports.

    Where a person is to choose names of generated pictures, `choose.html` beside it asks for them.

    Args:
        pipeline: its settings.
        made: outputs in order of their making; a part of the pipeline's will do, and the page then
            tells of that part.
        folder: of this report alone (`hdm.evaluation.report_index.new_folder`).
        overrides: the settings that the run was given, as `stage.field=value`.
        missing: names of the pipeline's other outputs.

    Returns:
        The page's path. The page refers to nothing outside itself but `choose.html`.
    """
    outputs = {one.output.name: one.output for one in made}
    now = datetime.now().astimezone()
    stages = _stages(made)
    measured = scores_of({name: output.summary for name, output in outputs.items()})
    facts = {
        "pipeline": pipeline.name,
        "written": now.isoformat(timespec="seconds"),
        "outputs": list(outputs),
        "missing": list(missing),
        "overrides": redacted_value(list(overrides)),
        "seconds": sum(stage["seconds"] for stage in stages),
        "scores": _headline(measured),
        "measured": measured,
        **provenance(),
    }
    settings = redacted_value(pipeline.model_dump(mode="json"))
    context = {
        **facts,
        "pipeline": pipeline,
        "run": folder.name,
        "written": now.strftime("%-d %B %Y, %H:%M %Z"),
        "stages": stages,
        "makers": _makers(made),
        "settings": json.dumps(settings, indent=2, ensure_ascii=False),
        **_data(pipeline, outputs),
        **_training(outputs),
        **_evaluation(pipeline, outputs),
    }
    context["choose"] = _write_choosing(pipeline, outputs, context["findings"], folder)
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
    environment.filters.update(percent=_percent, seconds=_seconds, number=_number, score=_score)
    return environment.get_template(template).render(context).encode()


def _headline(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scores that tell most, as the list of reports has them."""
    return {
        name: {"value": score["value"], "is_share": score["is_share"]}
        for name, score in headlines(measured).items()
    }


def _makers(made: Sequence[ReportedOutput]) -> list[dict[str, Any]]:
    """Code, libraries and machine, each with the outputs that were finished with them; none of
    outputs that do not say.
    """
    found: dict[bytes, dict[str, Any]] = {}
    for one in made:
        runs = one.output.run().get("runs") or [{}]
        maker = {name: runs[-1].get(name) for name in ("code", "libraries", "machine", "host")}
        entry = found.setdefault(canonical_json(maker), {**maker, "outputs": []})
        entry["outputs"].append(one.output.name)
    return list(found.values())


def _stages(made: Sequence[ReportedOutput]) -> list[dict[str, Any]]:
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


def _write_choosing(
    pipeline: Pipeline,
    outputs: Mapping[str, Output],
    findings: Sequence[Finding],
    folder: Path,
) -> str | None:
    """Write the page to choose names on; its file's name, or None where nobody is asked to."""
    choices = next((one.details[CHOICES] for one in findings if CHOICES in one.details), None)
    if choices is None or IMAGES not in outputs or "download" not in outputs:
        return None
    images = outputs[IMAGES]
    sets = {}
    with Exhibition(pipeline, outputs["download"], None) as exhibition:
        for name, entries in choices.items():
            pictures = read_set(images.path, name, len(entries))
            training = exhibition.images(entry["nearest"]["key"] for entry in entries)
            sets[name] = choosing.questions(entries, pictures, training)
    context = {"pipeline": pipeline, "sets": sets, "evaluation": images.digest}
    write_bytes(folder / choosing.PAGE, render(choosing.TEMPLATE, context))
    return choosing.PAGE


def _source(download: Output) -> list[str]:
    """What became of the files, lines and captions of the source."""
    if all(record.name != inventory.NAME for record in download.files):
        return []
    return list(inventory.summary_lines(json.loads(download.file(inventory.NAME).read_bytes())))


def _training(outputs: Mapping[str, Output]) -> dict[str, Any]:
    phases = [output for name, output in outputs.items() if name.startswith("train.")]
    curves = [_curve(output) for output in phases]
    described = [
        {"name": output.name, "summary": output.summary, "grids": _grids(output)}
        for output in phases
    ]
    return {"phases": described, "curve": loss_curve(curves) if curves else ""}


def _grids(output: Output) -> list[dict[str, Any]]:
    """The pictures that a phase generated while it went, and at its end; none where it did so at
    its end alone.
    """
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
    findings = [read_finding(output) for name, output in outputs.items() if is_measured(name)]
    findings.sort(key=lambda one: not one.sees_images)  # what was generated first, then the data
    found: dict[str, Any] = {
        "findings": findings,
        "groups": {one.name: _groups(one) for one in findings},
        "sets": [],
        "pairs": [],
        "real": {},
    }
    if IMAGES in outputs:
        written = json.loads(outputs[IMAGES].file(SETS).read_bytes())
        asked = [one for one in written["sets"] if not one["keys"]]
        marks = {name: of_set for one in findings for name, of_set in one.marks.items()}
        found["sets"] = [
            _shown(outputs[IMAGES], one, min(one["count"], SHOWN), marks.get(one["name"], []))
            for one in asked
        ]
        captions = next((one for one in written["sets"] if one["keys"]), None)
        found["pairs"] = _pairs(pipeline, outputs, captions, 1 if asked else 2) if captions else []
        found["real"] = written["real"]
    return found


def _groups(finding: Finding) -> dict[str, list[Any]]:
    """The scores that are shown with their interval as a bar, by the title above them."""
    groups: dict[str, list[Any]] = {}
    for score in finding.scores.values():
        if score.is_share and score.low is not None:
            groups.setdefault(score.group, []).append(score)
    return groups


def _shown(
    output: Output, prompt_set: Mapping[str, Any], count: int, marks: Sequence[Mapping[str, bool]]
) -> dict[str, Any]:
    """The first images of a set, with their prompts and what a judge says of them."""
    name = prompt_set["name"]
    prompts = read_prompts_of(output.path, name, count)
    images = [data_uri(picture) for picture in read_set(output.path, name, count)]
    shown = list(marks[:count]) or [{}] * count
    tiles = [
        {"image": image, "prompt": prompt, "marks": mark}
        for image, prompt, mark in zip(images, prompts, shown, strict=True)
    ]
    return {"title": prompt_set["title"] or name, "count": prompt_set["count"], "tiles": tiles}


def _pairs(
    pipeline: Pipeline, outputs: Mapping[str, Output], prompt_set: Mapping[str, Any], times: int
) -> list[dict[str, Any]]:
    """Images generated from captions of real pictures, beside these."""
    keys = prompt_set["keys"][: times * PAIRS]
    if "download" not in outputs:
        return []
    output = outputs[IMAGES]
    generated = [
        data_uri(picture) for picture in read_set(output.path, prompt_set["name"], len(keys))
    ]
    prompts = read_prompts_of(output.path, prompt_set["name"], len(keys))
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


def _score(score: Mapping[str, Any]) -> str:
    return _percent(score["value"]) if score["is_share"] else _number(score["value"])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
