"""`report.html`: one self-contained page about the results of a pipeline."""

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
from hdm.evaluation import choosing
from hdm.evaluation.choosing import CHOICES
from hdm.evaluation.curves import PhaseCurve, loss_curve
from hdm.evaluation.exhibits import Exhibition, data_uri
from hdm.evaluation.images import SETS
from hdm.evaluation.painting import read_prompts_of, read_set
from hdm.evaluation.settings import Pipeline
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
from hdm.store import MANIFEST, Output, Outputs

PAGE = "report.html"
FACTS = "report.json"
TEMPLATE = "report.html.j2"
# How many examples the page shows.
KEPT = 24
REJECTED = 8  # for each reason
PAIRS = 12
GRID_PX = 480
SHOWN = 32  # images of a set


class ReportedOutput(Protocol):
    """An output that was made or was there already."""

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
    """Write `report.html` about the outputs made so far, and `report.json` for the list of reports.

    If a person is to choose names for generated pictures, `choose.html` beside it asks for them.

    Args:
        pipeline: its settings.
        made: outputs in the order of making; the page covers those that are given.
        folder: of this report alone (`hdm.evaluation.report_index.new_folder`).
        overrides: settings that the run was given, as `stage.field=value`.
        missing: names of the pipeline's other outputs.

    Returns:
        The page's path. The page refers to no other file but `choose.html`.
    """
    outputs = {one.output.name: one.output for one in made}
    now = datetime.now().astimezone()
    stages = _stages(made)
    measured = scores_of({name: output.summary for name, output in outputs.items()})
    # What the list of reports shows, which does not parse pages.
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
    # A report is passed on: it holds references to secrets, never their values.
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
    # Before the page, which links to it.
    context["choose"] = _write_choosing(pipeline, outputs, context["findings"], folder)
    page = folder / PAGE
    write_bytes(page, render(TEMPLATE, context))
    write_json(folder / FACTS, facts)
    return page


def render(template: str, context: Mapping[str, Any]) -> bytes:
    """A page from one of the templates beside this file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        # Captions, paths and errors come from other people's data and may hold markup.
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A misspelt name in a template is an error instead of an empty place.
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(percent=percent, seconds=_seconds, number=_number, score=_score)
    return environment.get_template(template).render(context).encode()


def _headline(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The headline scores as the list of reports needs them."""
    scores = {}
    for name, score in headlines(measured).items():
        scores[name] = {"value": score["value"], "is_share": score["is_share"]}
    return scores


def _makers(made: Sequence[ReportedOutput]) -> list[dict[str, Any]]:
    """Combinations of code, libraries and machine, each with the outputs that were finished with
    it. Fields that an output does not record are None.
    """
    makers: dict[bytes, dict[str, Any]] = {}
    for one in made:
        runs = one.output.run().get("runs") or [{}]
        # The last run finished the output.
        maker = {name: runs[-1].get(name) for name in ("code", "libraries", "machine", "host")}
        entry = makers.setdefault(canonical_json(maker), {**maker, "outputs": []})
        entry["outputs"].append(one.output.name)
    return list(makers.values())


def _stages(made: Sequence[ReportedOutput]) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = []
    for one in made:
        output = one.output
        manifest = json.loads((output.path / MANIFEST).read_bytes())
        counts = {}
        for name, count in output.counts.items():
            if count:
                counts[name.replace("_", " ")] = count
        stages.append(
            {
                "name": output.name,
                "digest": output.digest,
                "cached": one.cached,
                "seconds": float(output.run().get("seconds", 0.0)),
                "counts": counts,
                "bytes": sum(file.bytes for file in output.files),
                "weights": manifest["weights"],
                "inputs": manifest["inputs"],
            }
        )
    # The page draws times as bars, relative to the longest.
    longest = max((stage["seconds"] for stage in stages), default=0.0) or 1.0
    for stage in stages:
        stage["share"] = stage["seconds"] / longest
    return stages


def _data(pipeline: Pipeline, outputs: Outputs) -> dict[str, Any]:
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
    outputs: Outputs,
    findings: Sequence[Finding],
    folder: Path,
) -> str | None:
    """Write the page to choose names on. Return its file's name; None if there are no choices."""
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
    """Sentences on what became of the source's files, lines and captions."""
    if all(record.name != inventory.NAME for record in download.files):
        return []
    return list(inventory.summary_lines(json.loads(download.file(inventory.NAME).read_bytes())))


def _training(outputs: Outputs) -> dict[str, Any]:
    phases = [output for name, output in outputs.items() if name.startswith("train.")]
    curves = [_curve(output) for output in phases]
    described = []
    for output in phases:
        described.append({"name": output.name, "summary": output.summary, "grids": _grids(output)})
    return {"phases": described, "curve": loss_curve(curves) if curves else ""}


def _grids(output: Output) -> list[dict[str, Any]]:
    """The pictures that a phase generated during training and at its end; none if it only did so at
    its end.
    """
    name_at = {}
    for record in output.files:
        if record.name.startswith("generated-"):
            seen = int(record.name.removeprefix("generated-").removesuffix(".png"))
            name_at[seen] = record.name
    if name_at:
        name_at.setdefault(output.counts["images_seen"], "generated.png")
    return [{"seen": seen, "image": _grid(output.file(name_at[seen]))} for seen in sorted(name_at)]


def _grid(path: Path) -> str:
    with Image.open(path) as picture:
        return data_uri(np.asarray(picture.convert("RGB")), GRID_PX)


def _curve(output: Output) -> PhaseCurve:
    losses = []
    validation = []
    last = 0
    for text in output.file("metrics.jsonl").read_text().splitlines():
        if not text:
            continue
        line = json.loads(text)
        seen = line["num_images_seen"]
        last = max(last, seen)
        # A line may hold only one of the two.
        if line.get("loss") is not None:
            losses.append((seen, line["loss"]))
        if line.get("validation_loss") is not None:
            validation.append((seen, line["validation_loss"]))
    return PhaseCurve(output.name.removeprefix("train."), last, losses, validation)


def _evaluation(pipeline: Pipeline, outputs: Outputs) -> dict[str, Any]:
    findings = [read_finding(output) for name, output in outputs.items() if is_measured(name)]
    # Metrics of generated images come first, then those of the data.
    findings.sort(key=lambda one: not one.sees_images)
    context: dict[str, Any] = {
        "findings": findings,
        "groups": {one.name: _groups(one) for one in findings},
        "sets": [],
        "pairs": [],
        "real": {},
    }
    if IMAGES in outputs:
        record = json.loads(outputs[IMAGES].file(SETS).read_bytes())
        marks: dict[str, Sequence[Mapping[str, bool]]] = {}
        for finding in findings:
            marks |= finding.marks
        # Sets whose prompts are captions of real pictures are shown beside these.
        captions = None
        for prompt_set in record["sets"]:
            if not prompt_set["keys"]:
                count = min(prompt_set["count"], SHOWN)
                of_set = marks.get(prompt_set["name"], [])
                context["sets"].append(_tiles(outputs[IMAGES], prompt_set, count, of_set))
            elif captions is None:
                captions = prompt_set
        if captions is not None:
            # More pairs where no other set is shown.
            times = 1 if context["sets"] else 2
            context["pairs"] = _pairs(pipeline, outputs, captions, times)
        context["real"] = record["real"]
    return context


def _groups(finding: Finding) -> dict[str, list[Any]]:
    """The scores that are shown as bars with their intervals, by the title above them."""
    groups: dict[str, list[Any]] = {}
    for score in finding.scores.values():
        if score.is_share and score.low is not None:
            groups.setdefault(score.group, []).append(score)
    return groups


def _tiles(
    output: Output, prompt_set: Mapping[str, Any], count: int, marks: Sequence[Mapping[str, bool]]
) -> dict[str, Any]:
    """The first images of a set, with their prompts and a judge's verdicts."""
    name = prompt_set["name"]
    prompts = read_prompts_of(output.path, name, count)
    pictures = read_set(output.path, name, count)
    verdicts = list(marks[:count]) or [{}] * count
    tiles = []
    for picture, prompt, mark in zip(pictures, prompts, verdicts, strict=True):
        tiles.append({"image": data_uri(picture), "prompt": prompt, "marks": mark})
    return {"title": prompt_set["title"] or name, "count": prompt_set["count"], "tiles": tiles}


def _pairs(
    pipeline: Pipeline, outputs: Outputs, prompt_set: Mapping[str, Any], times: int
) -> list[dict[str, Any]]:
    """Images generated from captions of real pictures, with these."""
    keys = prompt_set["keys"][: times * PAIRS]
    if "download" not in outputs:
        return []
    folder = outputs[IMAGES].path
    generated = read_set(folder, prompt_set["name"], len(keys))
    prompts = read_prompts_of(folder, prompt_set["name"], len(keys))
    with Exhibition(pipeline, outputs["download"], None) as exhibition:
        real = exhibition.images(keys)
    pairs = []
    for prompt, picture, image in zip(prompts, generated, real, strict=True):
        pairs.append({"prompt": prompt, "generated": data_uri(picture), "real": image})
    return pairs


def percent(share: float) -> str:
    """A share in per cent, as people read it."""
    # Without decimals where they would be zeros: 0 % and 100 %.
    decimals = 1 if 0.0005 < share < 0.9995 else 0
    return f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


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
    return percent(score["value"]) if score["is_share"] else _number(score["value"])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
