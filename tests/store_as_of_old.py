"""Outputs as an older release left them."""

import hashlib
import json
import shutil
from pathlib import Path

from hdm.files import canonical_json


def as_of_old(folder: Path) -> None:
    """An output as releases before 0.2 wrote it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("manifest_sha256")
    for record in manifest["files"]:
        record.pop("xxh3")
    digest = hashlib.sha256(canonical_json(manifest)).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "manifest_sha256": digest}))
    lines = [
        json.loads(line) for line in (folder / ".journal.jsonl").read_text().split("\n") if line
    ]
    new = ("xxh3", "of", "line_xxh3")
    old = [{k: v for k, v in line.items() if k not in new} for line in lines]
    (folder / ".journal.jsonl").write_text("\n".join(json.dumps(line) for line in old))
    shutil.rmtree(folder / ".copies")
