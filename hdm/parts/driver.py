"""The one driver of all steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from hdm.errors import LockedError
from hdm.parts.here import make_here
from hdm.parts.pool import make_in_pool
from hdm.parts.step import Part, Records, Step, Task, Tools, Work
from hdm.parts.taken_over import take_over
from hdm.progress import track
from hdm.settings import ExecutionSettings
from hdm.store import Draft, Folder, Identity, Output, Store

HERE = ExecutionSettings()


def make(
    step: Step[Task, Tools],
    drafts: Iterable[Draft],
    execution: ExecutionSettings = HERE,
    store: Store | None = None,
) -> list[Output]:
    """Make the missing parts, and finish the outputs.

    Args:
        step: the work.
        drafts: of the outputs that it makes.
        execution: where the parts are made.
        store: from whose outputs parts are taken over that would read the same files again; None:
            all are made.

    Raises:
        ConfigError: the cluster cannot be used.
        HdmError: the processes that make parts ended; finished parts are kept.
    """
    by_name = {draft.identity.name: draft for draft in drafts}
    parts = list(step.plan())
    if store is not None:
        take_over(parts, by_name, store)
    missing = _missing(step, parts, by_name)
    if missing:
        folders = {name: Folder(draft.path, draft.digest) for name, draft in by_name.items()}
        total = sum(part.size for part in parts)
        done = total - sum(part.size for part in missing)

        def take(records: Records) -> None:
            for name, written in records.items():
                by_name[name].records.update(written)

        with track(step.what, total or None, step.unit, done=done) as bar:
            work = Work(step, missing, folders, bar, take)
            if execution.executor == "dask":
                from hdm.parts.on_dask import make_on_dask  # an optional package

                make_on_dask(work, execution, next(iter(by_name.values())).scratch)
            elif execution.processes is not None:
                make_in_pool(work, execution.processes)
            else:
                make_here(work)
    # Before any manifest: a step that forgot a file must not finish its output.
    for part in parts:
        _check_made(step, part, by_name)
    return [draft.commit(step.finish(draft)) for draft in by_name.values()]


def make_output(
    step: Step[Task, Tools],
    store: Store,
    identity: Identity,
    execution: ExecutionSettings = HERE,
) -> Output:
    """`make` for a step that has one output."""
    with store.draft(identity) as draft:
        return make(step, [draft], execution, store)[0]


@contextlib.contextmanager
def drafts_of(
    store: Store, identity: Identity, also: Iterable[Identity] = ()
) -> Iterator[dict[str, Draft]]:
    """Drafts by name: of an output, and of those `also` outputs that the store lacks and no other
    run is making.

    Raises:
        LockedError: another process works on the first output.
    """
    with ExitStack() as stack:
        drafts = {identity.name: stack.enter_context(store.draft(identity))}
        for other in also:
            # Making these here only saves a second reading; whoever holds the lock makes them too.
            with contextlib.suppress(LockedError):
                if store.find(other) is None:
                    drafts[other.name] = stack.enter_context(store.draft(other))
        yield drafts


def _missing(
    step: Step[Task, Tools], parts: Sequence[Part[Task]], drafts: Mapping[str, Draft]
) -> list[Part[Task]]:
    found = []
    for part in parts:
        lacking = {}
        for output, names in part.files.items():
            missing = tuple(name for name in names if not drafts[output].has(name))
            if missing:
                lacking[output] = missing
        if lacking:
            found.append(step.lacking(part, lacking))
    return found


def _check_made(step: Step[Any, Any], part: Part[Any], drafts: Mapping[str, Draft]) -> None:
    for output, names in part.files.items():
        for name in names:
            if not drafts[output].has(name):
                raise RuntimeError(f"{type(step).__name__} did not write {output}/{name}")
