"""Parts made in this process, several at a time where the step says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from hdm.parts.step import Records, Task, Tools, Work, make_one
from hdm.parts.stopping import Event, Watched


def make_here(work: Work[Task, Tools]) -> None:
    """Make the parts in this process."""
    with work.step.open() as tools:
        count = min(work.step.threads(tools), len(work.parts))
        if count == 1:
            for part in work.parts:
                work.take(make_one(work.step, part, work.folders, tools, work.bar))
            return
        over = threading.Event()
        watched = Watched(over, work.bar)
        with ThreadPoolExecutor(count, thread_name_prefix="parts") as threads:
            working = []
            for part in work.parts:
                working.append(
                    threads.submit(make_one, work.step, part, work.folders, tools, watched)
                )
            take_all(working, over, lambda future: work.take(future.result()))


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
