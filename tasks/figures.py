"""What is tracked of an output: its numbers, series, pictures, and the data that it comes from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TypedDict

Point = tuple[str, float, int, int]  # key, value, milliseconds since 1970, images seen
# Uploads of large artifacts time out in MLflow (its issue 7564).
LARGEST_BYTES = 30_000_000
LOOKED_AT = (".png", ".json", ".jsonl", ".html")


class FileRecord(TypedDict):
    """Of a file in a manifest: what is read here."""

    name: str
    counts: dict[str, int]


class Manifest(TypedDict):
    """Of an output: what is read here."""

    name: str
    digest: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: list[FileRecord]
    summary: dict[str, Any]


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an output's folder."""
    manifest: Manifest = json.loads((folder / "manifest.json").read_bytes())
    return manifest


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": [1]}}` as `a.b` → [1]; a list of mappings by position."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flattened(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for position, item in enumerate(value):
            yield from flattened(item, f"{name}.{position}")
    else:
        yield name, value


def numeric(value: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers in nested mappings, by dotted name."""
    for name, item in flattened(value):
        # In Python, True is an int.
        if isinstance(item, int | float) and not isinstance(item, bool):
            yield name, item


def counts(manifest: Manifest) -> dict[str, int]:
    """The counts of an output's files, summed."""
    total: dict[str, int] = {}
    for record in manifest["files"]:
        for name, count in record["counts"].items():
            total[name] = total.get(name, 0) + count
    return total


def measured(folder: Path) -> dict[str, float]:
    """Figures measured while an output was made (rates, shares of time), which are not in its
    manifest.
    """
    try:
        return dict(numeric(json.loads((folder / "run.json").read_bytes()).get("figures", {})))
    except (OSError, ValueError, AttributeError):
        return {}


def origin(root: Path, manifest: Manifest) -> str:
    """The digest of the download that an output comes from."""
    if not manifest["inputs"]:
        return manifest["digest"]
    name, digest = next(iter(manifest["inputs"].items()))
    return origin(root, read_manifest(input_folder(root, name, digest)))


def input_folder(root: Path, name: str, digest: str) -> Path:
    """The folder of an output's input. Inputs that other pipelines made have a prefix: `mix.0/` for
    one mixed in, `start/train` for the phase that a training starts from, of any resolution.
    """
    own = name.rpartition("/")[2]
    folder = root / own / digest
    return folder if own == name else next(root.glob(f"{own}*/{digest}"), folder)


def shown(folder: Path, manifest: Manifest) -> list[Path]:
    """The files of an output that people look at. The manifest, which lists every file with size
    and sha256, comes first.
    """
    paths = [folder / "manifest.json"]
    for record in manifest["files"]:
        if record["name"].endswith(LOOKED_AT):
            paths.append(folder / record["name"])
    return [path for path in paths if path.stat().st_size <= LARGEST_BYTES]


class Series:
    """New lines of an output's JSONL file, while it grows in the scratch folder or when it is
    finished.

    Args:
        folder: the output's folder in the store.
        name: one of FILES; keys of all but the first get its stem as prefix.

    `final` holds the last value of each key.
    """

    FILES: ClassVar = ("metrics.jsonl", "timing.jsonl")
    CLOCK: ClassVar = "num_images_seen"

    def __init__(self, folder: Path, name: str) -> None:
        # Finished; growing while a phase trains; complete but not committed yet.
        self.places = [
            folder / name,
            folder / ".scratch" / name,
            folder / ".scratch" / "result" / name,
        ]
        self.prefix = "" if name == self.FILES[0] else f"{Path(name).stem}."
        self.omitted = ("step", "incidents") if name == self.FILES[0] else ("step", "loss")
        self.offset = 0
        self.last = -1
        self.final: dict[str, float] = {}

    def added(self) -> Iterator[Point]:
        """Points that were not returned before, without those that a resumed training writes
        again.
        """
        now = int(time.time() * 1000)
        for line in self._lines():
            seen = int(line.pop(self.CLOCK, -1))
            # A resumed training writes the steps since its checkpoint again.
            if seen <= self.last:
                continue
            for name in self.omitted:
                line.pop(name, None)
            for key, value in numeric(line):
                self.final[self.prefix + key] = value
                yield self.prefix + key, value, now, seen
            self.last = seen

    def _lines(self) -> list[dict[str, Any]]:
        for path in self.places:
            if path.exists():
                with path.open("rb") as file:
                    # A resumed training may have cut its file back to the checkpoint.
                    file.seek(self.offset if path.stat().st_size >= self.offset else 0)
                    start = file.tell()
                    added = file.read()
                # The last line may still be incomplete.
                whole = added[: added.rfind(b"\n") + 1]
                self.offset = start + len(whole)
                return list(map(json.loads, whole.splitlines()))
        return []


class Pictures:
    """New pictures of an output while it is made.

    Args:
        folder: the output's folder in the store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".scratch" / "milestones"
        self.returned: set[Path] = set()

    def added(self) -> Iterator[Path]:
        """Pictures that were not returned before, in order of name."""
        for path in sorted(set(self.folder.glob("[!.]*.png")) - self.returned):
            yield path
            # Only after the caller has taken it without an error.
            self.returned.add(path)
