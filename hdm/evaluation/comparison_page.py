"""`compare.html` and `compare.json`: what a comparison of runs found, and their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hdm.errors import counted
from hdm.evaluation.comparison import Comparison, Difference
from hdm.evaluation.exhibits import data_uri
from hdm.evaluation.painting import read_set
from hdm.evaluation.report import percent, render
from hdm.files import make_folder, write_bytes, write_json
from hdm.provenance import provenance
from hdm.redaction import redacted_value

PAGE = "compare.html"
FACTS = "compare.json"
TEMPLATE = "compare.html.j2"
SHOWN = 12  # prompts of a set
MINUS = "\N{MINUS SIGN}"
ONE_TRAINING = (
    "Intervals are over prompts. They hold for these weights: of one training each, they say"
    " nothing of what another training with the same settings would give, and so compare"
    " checkpoints, not methods."
)


def write_comparison(comparisons: Sequence[Comparison], folder: Path) -> Path:
    """Write both files.

    Args:
        comparisons: of the same first run with others, judged.
        folder: made where it is missing.

    Returns:
        The page's path. It refers to no other file.

    Raises:
        InputError: the folder cannot be made.
    """
    facts = described(comparisons)
    context = {
        **facts,
        "written": datetime.now().astimezone().strftime("%-d %B %Y, %H:%M %Z"),
        "names": [comparisons[0].first.name, *(one.second.name for one in comparisons)],
        "shown": [_shown(one) for one in comparisons],
        "sets": list(_sets(comparisons)),
        "one_training": ONE_TRAINING,
    }
    make_folder(folder, do="name another with --out")
    write_bytes(folder / PAGE, render(TEMPLATE, context))
    write_json(folder / FACTS, facts)
    return folder / PAGE


def described(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What was found, in plain values for JSON."""
    first = comparisons[0].first
    runs = []
    for run in (first, *(one.second for one in comparisons)):
        runs.append({"name": run.name, "images": run.images.digest, "folder": str(run.images.path)})
    found = []
    for comparison in comparisons:
        found.append(
            {
                "run": comparison.second.name,
                "against": first.name,
                "summary": summary(comparison),
                "differences": [one.to_dict() for one in comparison.differences],
                "left_out": list(comparison.notes),
                "settings": _settings(comparison),
            }
        )
    return {"runs": runs, "comparisons": found, **provenance()}


def summary(comparison: Comparison) -> str:
    """The verdicts in a sentence."""
    names = f"{comparison.second.name} against {comparison.first.name}"
    counts = [
        f"better in {comparison.count('better')}",
        f"worse in {comparison.count('worse')}",
        f"no difference shown in {comparison.count('no difference shown')}",
    ]
    if comparison.count("not judged"):
        counts.append(f"not judged in {comparison.count('not judged')}")
    measures = counted(len(comparison.differences), "measure")
    return f"{names}: of {measures} {', '.join(counts)}"


def rows_of(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """Each difference in words, by the title above it."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in comparison.differences:
        groups.setdefault(one.group, []).append(_row(one))
    return groups


def _shown(comparison: Comparison) -> dict[str, Any]:
    return {
        "first": comparison.first.name,
        "second": comparison.second.name,
        "counts": {
            "better": comparison.count("better"),
            "worse": comparison.count("worse"),
            "no difference shown": comparison.count("no difference shown"),
            "not judged": comparison.count("not judged"),
        },
        "named": {verdict: _labels(comparison, verdict) for verdict in ("better", "worse")},
        "groups": rows_of(comparison),
        "notes": comparison.notes,
        "settings": _settings(comparison),
    }


def _labels(comparison: Comparison, verdict: str) -> list[str]:
    return [
        f"{one.label} ({one.group})" for one in comparison.differences if one.verdict == verdict
    ]


def _row(one: Difference) -> dict[str, Any]:
    detectable = one.apart.detectable(one.num_questions)
    row: dict[str, Any] = {
        "label": one.label,
        "direction": one.direction,
        "first": _value(one, one.first),
        "second": _value(one, one.second),
        "floor": None if one.floor is None else _value(one, one.floor),
        "verdict": one.verdict,
        "sentence": one.sentence,
        "difference": "none" if one.is_same else _signed(one, one.apart.value),
        "interval": "",
        "detectable": _unsigned(one, detectable) if detectable else "",
        "num_prompts": one.apart.distinct,
        "num_pairs": one.num_pairs,
        "estimator": one.apart.estimator,
        "p_holm": one.p_holm,
        "track": None,
    }
    low = one.apart.low
    high = one.apart.high
    if low is not None and high is not None and not one.is_same:
        row["interval"] = f"{_number(one, low)} to {_signed(one, high)}"
        # Zero in the middle, and the whole interval in view.
        reach = 1.1 * max(abs(low), abs(high)) or 1.0
        row["track"] = {
            "left": 50 + 50 * low / reach,
            "width": 50 * (high - low) / reach,
            "dot": 50 + 50 * one.apart.value / reach,
        }
    return row


def _value(one: Difference, value: float) -> str:
    return percent(value) if one.is_share else f"{value:.4g}".replace("-", MINUS)


def _number(one: Difference, value: float) -> str:
    number = f"{100 * value:+.1f}" if one.is_share else f"{value:+.3g}"
    return number.replace("-", MINUS)


def _signed(one: Difference, value: float) -> str:
    # Points: a difference of shares is no share of anything.
    return f"{_number(one, value)} points" if one.is_share else _number(one, value)


def _unsigned(one: Difference, value: float) -> str:
    return _signed(one, value).lstrip("+")


def _settings(comparison: Comparison) -> list[dict[str, Any]]:
    """The settings that differ, by name."""
    first = comparison.first.config
    second = comparison.second.config
    found = []
    for name in {**first, **second}:
        values = [redacted_value(config.get(name)) for config in (first, second)]
        if values[0] != values[1]:
            found.append({"name": name, "first": values[0], "second": values[1]})
    return found


def _sets(comparisons: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    """Pictures of the same prompts and seeds side by side."""
    first = comparisons[0].first
    for name, measured in first.sets.items():
        # Row of the first run → row of each other that has the same prompt and seed.
        others = [dict(one.pairs.get(name, [])) for one in comparisons]
        rows = [row for row in range(len(measured.asked)) if all(row in one for one in others)]
        if not rows:
            continue
        rows = rows[:SHOWN]
        columns = [(first, rows)]
        for comparison, found in zip(comparisons, others, strict=True):
            columns.append((comparison.second, [found[row] for row in rows]))
        strips = []
        for run, places in columns:
            pictures = read_set(run.images.path, name, max(places) + 1)
            strips.append([data_uri(pictures[place]) for place in places])
        tiles = []
        for number, row in enumerate(rows):
            prompt, seed = measured.asked[row]
            images = [strip[number] for strip in strips]
            tiles.append({"prompt": prompt, "seed": seed, "images": images})
        yield {"title": measured.title, "tiles": tiles, "count": len(comparisons[0].pairs[name])}
