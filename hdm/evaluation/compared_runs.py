"""What a comparison reads of a run: pictures with their prompts and seeds, and what was measured of
each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hdm.errors import DamagedError, HdmError, InputError, counted
from hdm.evaluation.embeddings import Compared, read_embedded
from hdm.evaluation.images import SETS
from hdm.evaluation.painting import read_asked
from hdm.scoring.metrics import EMBEDDINGS, IMAGES, PREFIX, is_measured, read_finding
from hdm.store import MANIFEST, Output, check_files, read_output

ALL = "all"
COSINE = "clip_score"
Asked = tuple[str, int]
"""Prompt and seed."""


@dataclass(frozen=True)
class MeasuredSet:
    """The pictures of one set.

    Args:
        title: of the set.
        asked: prompt and seed of each picture.
        shares: question → whether each picture is right.
        numbers: name → a number of each picture.
    """

    title: str
    asked: Sequence[Asked]
    shares: Mapping[str, Sequence[bool]]
    numbers: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class MeasuredRun:
    """A run.

    Args:
        name: what it was called.
        images: output `evaluate.images`.
        sets: by name.
        compared: embeddings that distances are measured between; None if there are none.
        config: what the pictures and the training depend on, as `output.setting`.
    """

    name: str
    images: Output
    sets: Mapping[str, MeasuredSet]
    compared: Compared | None
    config: Mapping[str, Any]


def read_run(name: str, images: Output) -> MeasuredRun:
    """Read a run by the output of its pictures. What was measured of them is looked up in the same
    store.

    Raises:
        InputError: a set has fewer pictures than it was made of.
        DamagedError: a file is not what was written.
    """
    try:
        check_files(images)
    except DamagedError as error:
        raise DamagedError(
            f"pictures of {name} are missing or damaged",
            where=error.where,
            do="run its pipeline again: they are made anew",
        ) from error
    outputs = measured_outputs(images)
    marks: dict[str, Sequence[Mapping[str, bool]]] = {}
    compared = None
    cosines: dict[str, np.ndarray] = {}
    for output in outputs.values():
        if output.name == EMBEDDINGS:
            embedded = read_embedded(output)
            compared = embedded.compared
            for set_name, rows in embedded.sets.items():
                cosines[set_name] = (rows.images * rows.texts).sum(1)
        else:
            marks |= read_finding(output).marks
    sets = {}
    for told in json.loads(images.file(SETS).read_bytes())["sets"]:
        asked = read_asked(images.path, told["name"])
        if len(asked) != told["count"]:
            raise InputError(
                f"{name} has {counted(len(asked), 'picture')} of the set {told['name']}, not"
                f" {told['count']:,}",
                where=images.path,
                do="run its pipeline again: they are made anew",
            )
        numbers = {COSINE: cosines[told["name"]]} if told["name"] in cosines else {}
        shares = _by_question(marks.get(told["name"], ()))
        sets[told["name"]] = MeasuredSet(told["title"] or told["name"], asked, shares, numbers)
    return MeasuredRun(name, images, sets, compared, dict(_config(images)))


def measured_outputs(images: Output) -> dict[str, Output]:
    """What was measured of some pictures, by name, and their embeddings; of several versions the
    newest.
    """
    root = images.path.parent.parent
    own = {images.digest}
    found: dict[str, Output] = {}
    # Embeddings first: other outputs are made from them, not from the pictures.
    for pattern in (EMBEDDINGS, f"{PREFIX}*"):
        for manifest in sorted(root.glob(f"{pattern}/*/{MANIFEST}"), key=_age):
            output = _readable(manifest.parent)
            if output is None or own.isdisjoint(output.inputs.values()):
                continue
            if output.name == EMBEDDINGS:
                own.add(output.digest)
            if output.name == EMBEDDINGS or is_measured(output.name):
                found[output.name] = output
    return found


def images_made_from(root: Path, digest: str) -> Output | None:
    """The newest pictures in a store that were made from an output of this digest."""
    newest = None
    for manifest in sorted(root.glob(f"{IMAGES}/*/{MANIFEST}"), key=_age):
        output = _readable(manifest.parent)
        if output is not None and digest in output.inputs.values():
            newest = output
    return newest


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _readable(folder: Path) -> Output | None:
    """An output; None if it is damaged, or was removed meanwhile."""
    try:
        return read_output(folder)
    except (FileNotFoundError, HdmError):
        return None


def _by_question(marks: Sequence[Mapping[str, bool]]) -> dict[str, list[bool]]:
    if not marks:
        return {}
    answers = {question: [mark[question] for mark in marks] for question in marks[0]}
    return {**answers, ALL: [all(mark.values()) for mark in marks]}


def _config(images: Output) -> Iterator[tuple[str, Any]]:
    root = images.path.parent.parent
    for name, value in images.config.items():
        yield f"evaluate.{name}", value
    for name, digest in images.inputs.items():
        output = _readable(root / name / digest) if name.startswith("train.") else None
        for field, value in _flat(output.config if output else {}):
            yield f"{name}.{field}", value


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
