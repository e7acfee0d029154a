"""Parts made in this process, several at a time where the step says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from hdm.parts.step import Folders, Part, Records, Step, Take, Task, Tools, make_one
from hdm.parts.stopping import Event, Watched
from hdm.progress import Tracker


def make_here(
    step: Step[Task, Tools],
    parts: Sequence[Part[Task]],
    folders: Folders,
    bar: Tracker,
    take: Take,
) -> None:
    with step.open() as tools:
        count = min(step.threads(tools), len(parts))
        if count == 1:
            for part in parts:
                take(make_one(step, part, folders, tools, bar))
            return
        over = threading.Event()
        watched = Watched(over, bar)
        with ThreadPoolExecutor(count, thread_name_prefix="parts") as threads:
            working = []
            for part in parts:
                working.append(threads.submit(make_one, step, part, folders, tools, watched))
            take_all(working, over, lambda future: take(future.result()))


def take_all(
    working: Collection[Future[Records]], over: Event, take: Callable[[Future[Records]], None]
) -> None:
    """Pass on each finished part. After an error in one part, or a signal, no other part begins,
    and those in progress are abandoned.
    """
    try:
        for future in as_completed(working):
            take(future)
    finally:
        over.set()
        for future in working:
            # Parts that have not begun; those in progress see `over`.
            future.cancel()
