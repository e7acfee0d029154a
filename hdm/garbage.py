"""Find and remove what a store no longer needs.

An output is needed if a pipeline or lab of pipelines.yaml makes or reads it with its present
settings; if it was used in the last days, that is, made or found by a run, whatever its `--set`, or
sampled from; or if a needed output was made from it. In needed outputs, only leftovers of kills and
damage are removed: temporary files, checkpoints of finished outputs, and `.damaged` files.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hdm.config import Pipeline
from hdm.errors import HdmError, InputError, LockedError
from hdm.files import TEMPORARY, explain_os_error, remove
from hdm.lab.grid import lab_names, load_lab, plan_grid
from hdm.last_runs import last_runs
from hdm.pipelines import load_pipeline, pipeline_names
from hdm.stages import OutputGraph
from hdm.store import (
    DAMAGED,
    JOURNAL,
    LOCK,
    MANIFEST,
    SCRATCH,
    USED,
    Store,
    alone_with,
    read_at_home,
)

DAY_SEC = 86400.0
TRAINING_LOCK = f"{SCRATCH}/training.lock"
DIGEST = re.compile("[0-9a-f]{16}")
ASIDE = re.compile(
    rf"{DIGEST.pattern}{re.escape(DAMAGED)}|{re.escape(TEMPORARY)}gc-{DIGEST.pattern}"
)
"""Names of what was set aside in place of an output, and of what an `hdm gc` did not finish."""
LOCKS = (LOCK, USED, TRAINING_LOCK)


@dataclass(frozen=True)
class Garbage:
    """Something to remove.

    Attributes:
        path: a folder of an output, or a file in one.
        output: the output's folder; where it is `path`, the whole output goes.
        why: in a word or two.
        num_bytes: that become free.
        used: when it was last used or changed, in seconds since 1970.
    """

    path: Path
    output: Path
    why: str
    num_bytes: int
    used: float


@dataclass(frozen=True)
class Needs:
    """What pipelines.yaml needs.

    Attributes:
        outputs: (name, digest) of each.
        unknown: pipelines of which not all outputs are known, each with the reason.
    """

    outputs: frozenset[tuple[str, str]]
    unknown: tuple[str, ...]


def needs(file: Path | None = None) -> Needs:
    """What the pipelines and labs of pipelines.yaml need with their present settings.

    Args:
        file: another pipelines.yaml.

    Raises:
        ConfigError: the file cannot be read.
    """
    outputs: set[tuple[str, str]] = set()
    unknown = []
    for name, pipeline in _pipelines(file):
        try:
            found = pipeline if isinstance(pipeline, HdmError) else _outputs_of(pipeline, outputs)
        except InputError as error:
            found = error
        if isinstance(found, HdmError):
            # Reported, since outputs of such a pipeline are kept only if they were used recently.
            unknown.append(f"{name} ({found.what})")
    return Needs(frozenset(outputs), tuple(dict.fromkeys(unknown)))


def _pipelines(file: Path | None) -> Iterator[tuple[str, Pipeline | HdmError]]:
    for name in pipeline_names(file):
        try:
            yield name, load_pipeline(name, [], file)
        except InputError as error:
            yield name, error
    for name in lab_names(file):
        try:
            grid = plan_grid(load_lab(name, file), [], None, [], file)
            cells = [grid.pipeline(cell) for cell in grid.cells()]
        except InputError as error:
            yield f"lab {name}", error
            continue
        for pipeline in cells:
            yield f"lab {name}", pipeline


def _outputs_of(pipeline: Pipeline, outputs: set[tuple[str, str]]) -> HdmError | None:
    """Add the outputs of a pipeline, as far as they can be known; the first error that keeps others
    from it.
    """
    graph = OutputGraph(pipeline)
    try:
        outputs |= {(one.name, one.digest) for one in graph.identities().values()}
        return None
    except InputError as error:
        first = error
    # A missing model hides only the outputs that depend on it; the others are still needed.
    for step in graph.steps:
        with contextlib.suppress(InputError):
            found = graph.identities(step.name)
            outputs |= {(one.name, one.digest) for one in found.values()}
    return first


def garbage(store: Store, needed: Needs, days: float) -> list[Garbage]:
    """What may be removed; what a process holds a lock on is left out.

    Args:
        store: where to look. Nothing is changed.
        needed: by pipelines.yaml.
        days: for how long after its last use an output is needed anyway.
    """
    folders = []
    busy = set()
    for path in sorted(store.root.glob("*/*")):
        if path.is_dir() and _is_output(path):
            folders.append(path)
            if _busy(path):
                busy.add(path)
    # Judged together: an output is also needed by those that were made from it.
    kept = _kept(store, folders, busy, needed, time.time() - days * DAY_SEC)
    removable: list[Garbage] = []
    for folder in folders:
        if folder in busy:
            continue
        if folder in kept:
            for path, why in _leftovers(folder):
                removable += _garbage(path, folder, why)
        else:
            done = (folder / MANIFEST).exists()
            removable += _garbage(folder, folder, "not needed" if done else "unfinished")
    for path in sorted(store.root.glob("*/*")):
        if ASIDE.fullmatch(path.name):
            removable += _garbage(path, path, "damaged or left by a kill")
    return removable


def _busy(folder: Path) -> bool:
    """Whether a process works on an output or reads it."""
    try:
        with contextlib.ExitStack() as stack:
            for lock in LOCKS:
                stack.enter_context(alone_with(folder / lock))
    except LockedError:
        return True
    return False


def _is_output(folder: Path) -> bool:
    """By its name, in a folder that is no other part of the store, and by what every output holds
    from its beginning: nobody else's folders are touched, wherever --store leads.
    """
    has_name = DIGEST.fullmatch(folder.name) and not folder.parent.name.startswith(".")
    return bool(has_name) and any((folder / mark).exists() for mark in (LOCK, MANIFEST, JOURNAL))


def _kept(
    store: Store, folders: list[Path], busy: set[Path], needed: Needs, since: float
) -> set[Path]:
    """The outputs that are needed, and those that they were made from."""
    wanted = needed.outputs | _of_living_runs(store, busy)
    by_name = {}
    waiting = []
    for folder in folders:
        name = (folder.parent.name, folder.name)
        by_name[name] = folder
        if name in wanted or folder in busy or last_used(folder) >= since:
            waiting.append(folder)
    kept: set[Path] = set()
    while waiting:
        folder = waiting.pop()
        if folder in kept:
            continue
        kept.add(folder)
        with contextlib.suppress(FileNotFoundError, HdmError):
            for input_name, digest in read_at_home(folder).inputs.items():
                # An input from another pipeline has a prefix before the output's name.
                _, _, output_name = input_name.rpartition("/")
                source = by_name.get((output_name, digest))
                if source is not None:
                    waiting.append(source)
    return kept


def _of_living_runs(store: Store, busy: set[Path]) -> set[tuple[str, str]]:
    """All outputs of the runs that work on these: an evaluation reads outputs that nobody used in
    the weeks of training before it.
    """
    wanted: set[tuple[str, str]] = set()
    for run in last_runs(store.root):
        outputs = {(name, digest) for name, digest in run.outputs.items() if digest is not None}
        if any((folder.parent.name, folder.name) in outputs for folder in busy):
            wanted |= outputs
    return wanted


def last_used(folder: Path) -> float:
    """When an output was last used or changed, in seconds since 1970."""
    try:
        # A lock's file changes whenever it is taken, also by a run that finds nothing to do.
        files = [path for path in folder.iterdir() if path.name != LOCK]
    except FileNotFoundError:  # removed just now
        files = []
    states = _states(files) or _states([folder])
    return max((state.st_mtime for state in states), default=0.0)


def _leftovers(folder: Path) -> Iterator[tuple[Path, str]]:
    """What kills and damage left in an output that is needed."""
    for path in sorted(_all_in(folder)):
        if path.name.endswith(DAMAGED):
            yield path, "damaged"
    for path in sorted(folder.glob(f"{TEMPORARY}*")):
        yield path, "left by a kill"
    if (folder / MANIFEST).exists() and (folder / SCRATCH).exists():
        yield folder / SCRATCH, "left by a kill"


def _garbage(path: Path, output: Path, why: str) -> list[Garbage]:
    """The garbage at a path, unless it was removed just now."""
    states = _states([path, *_all_in(path)])
    if not states:
        return []
    used = last_used(path) if path == output and path.is_dir() else states[0].st_mtime
    # Blocks, of 512 bytes on every file system: what becomes free, not what the files hold.
    # Of a tar that two downloads share, half: both may be removed.
    num_bytes = sum(state.st_blocks * 512 // _names(state) for state in states)
    return [Garbage(path, output, why, num_bytes, used)]


def _names(state: os.stat_result) -> int:
    """The number of names of a file; 1 for a folder, whose links are its folders."""
    return state.st_nlink if stat.S_ISREG(state.st_mode) else 1


def _all_in(path: Path) -> list[Path]:
    """All files and folders in a folder; none for a file or a link."""
    paths: list[Path] = []
    if not path.is_symlink():
        for place, folders, files in os.walk(path):
            paths += [Path(place, name) for name in (*folders, *files)]
    return paths


def _states(paths: Iterable[Path]) -> list[os.stat_result]:
    """The states of paths that still exist: runs rename and remove files meanwhile."""
    states = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            states.append(path.lstat())
    return states


def discard(one: Garbage) -> None:
    """Remove it, unless it is gone already or was used after it was listed.

    Raises:
        LockedError: a process works on it or reads it, or did in the meantime.
        HdmError: it cannot be removed.
    """
    if not os.path.lexists(one.path):
        return
    with contextlib.ExitStack() as stack:
        # Held while removing: a run may have begun to use it since it was listed.
        for lock in LOCKS:
            stack.enter_context(alone_with(one.output / lock))
        whole = one.path == one.output
        try:
            # A free lock does not mean unused: a run may have used it and ended since.
            if whole and one.path.is_dir() and last_used(one.path) > one.used:
                raise LockedError("used since it was listed", where=one.path)
            aside = one.path
            if whole:
                # Renamed first: a kill leaves no half of an output that looks whole.
                aside = one.path.with_name(f"{TEMPORARY}gc-{one.path.name}")
                remove(aside)
                one.path.rename(aside)
            remove(aside)
        except OSError as error:
            raise explain_os_error(error, one.path) from error
