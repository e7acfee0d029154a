"""The reports of a store: each belongs to one run and is never written over; a page lists them all.

<store>/reports/index.html
                <pipeline>/<run>/report.html    <run>: UTC time and recipe, as 20261129-224501-3fa9c1
                                 report.json    what the list says of it
"""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hdm.evaluation.report import FACTS, PAGE, SHARES, render
from hdm.files import write_bytes

INDEX, TEMPLATE = "index.html", "index.html.j2"


def reports(root: Path) -> Path:
    """The folder of a store's reports."""
    return root / "reports"


def new_folder(root: Path, pipeline: str, recipe: str) -> Path:
    """A folder for the report of a run that begins or ends now, which nobody else has."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{recipe[:6]}"
    folder = reports(root) / pipeline / name
    for number in itertools.count(2):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = folder.with_name(f"{name}-{number}")
        else:
            return folder
    raise AssertionError


def write_index(root: Path) -> Path:
    """Write the page that lists every report of the store, the newest first."""
    found = [_entry(root, path) for path in reports(root).glob(f"*/*/{FACTS}")]
    found.sort(key=lambda entry: (entry["written"], entry["run"]), reverse=True)
    shares = [name for name in SHARES if any(name in entry["scores"] for entry in found)]
    page = reports(root) / INDEX
    write_bytes(page, render(TEMPLATE, {"reports": found, "shares": shares}))
    return page


def _entry(root: Path, path: Path) -> dict[str, Any]:
    facts = json.loads(path.read_bytes())
    when = datetime.fromisoformat(facts["written"])
    return {
        **facts,
        "run": path.parent.name,
        "page": (path.parent / PAGE).relative_to(reports(root)).as_posix(),
        "told": f"{when.astimezone():%-d %B %Y, %H:%M}",
    }
