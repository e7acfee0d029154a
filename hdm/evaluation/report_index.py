"""The reports of a store. Each belongs to one run and is never overwritten; a page lists them all.

<store, or HDM_STATE>/reports/
                index.html
                <pipeline>/<run>/report.html    <run>: time and recipe, 20261129-224501-3fa9c1
                                 report.json    its entry in the list
"""

from __future__ import annotations

import itertools
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hdm.evaluation.report import FACTS, PAGE, render
from hdm.files import write_bytes
from hdm.store import state_root

INDEX = "index.html"
TEMPLATE = "index.html.j2"
LISTED = ("pipeline", "written", "outputs", "missing", "overrides", "seconds", "scores", "code")
log = logging.getLogger(__name__)


def reports(root: Path) -> Path:
    """The folder of a store's reports."""
    return state_root(root) / "reports"


def new_folder(root: Path, pipeline: str, recipe: str) -> Path:
    """Create a new folder for the report of a run that begins or ends now."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{recipe[:6]}"
    folder = reports(root) / pipeline / name
    for number in itertools.count(2):
        try:
            # mkdir refuses an existing folder, so two runs that end in the same second never share
            # one.
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = folder.with_name(f"{name}-{number}")
        else:
            return folder
    raise AssertionError


def write_index(root: Path) -> Path:
    """Write the page that lists every report of the store, the newest first."""
    entries = []
    num_unreadable = 0
    for path in reports(root).glob(f"*/*/{FACTS}"):
        entry = _entry(root, path)
        if entry is None:
            num_unreadable += 1
        else:
            entries.append(entry)
    entries.sort(key=lambda entry: (entry["written"], entry["run"]), reverse=True)
    # Columns of scores in the order of the newest report that has them.
    scores: dict[str, None] = {}
    for entry in entries:
        scores |= dict.fromkeys(entry["scores"])
    page = reports(root) / INDEX
    context = {"reports": entries, "scores": list(scores), "unreadable": num_unreadable}
    write_bytes(page, render(TEMPLATE, context))
    return page


def _entry(root: Path, path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
        facts = {name: record[name] for name in LISTED}
        when = datetime.fromisoformat(facts["written"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("left out of the list of reports: %s (%s)", path, error)
        return None
    scores = {}
    for name, score in facts["scores"].items():
        # Reports of 0.1.0 hold only shares, as plain numbers.
        scores[name] = score if isinstance(score, dict) else {"value": score, "is_share": True}
    return {
        **facts,
        "scores": scores,
        "run": path.parent.name,
        "page": (path.parent / PAGE).relative_to(reports(root)).as_posix(),
        "date": f"{when.astimezone():%-d %B %Y, %H:%M}",
    }
