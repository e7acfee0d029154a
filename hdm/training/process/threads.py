"""CPU threads of a training: it keeps the number that it began with, since sums are rounded by it,
and no other thread of its process competes with them.

<scratch>/threads.json    how many
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

import torch

from hdm.files import write_json

log = logging.getLogger(__name__)


def keep_threads(scratch: Path, wanted: int | None) -> None:
    """Compute with as many threads an operation as the training that lies in `scratch`; a new one
    begins with those wanted.

    Args:
        scratch: where checkpoints lie; it has to be there.
        wanted: by the settings, for each process; None: as many as torch has now.
    """
    path = scratch / "threads.json"
    now = wanted or torch.get_num_threads()
    begun = _read(path)
    if begun is None:
        write_json(path, {"threads": now})
    elif begun != now:
        log.warning(
            "training goes on with %d CPU threads, as it began, not with %d: another number rounds"
            " otherwise",
            begun,
            now,
        )
    torch.set_num_threads(begun or now)


def compute_with_one_thread_here() -> None:
    """Let torch use one thread for the operations of the calling Python thread, and change nothing
    for the main thread.

    Each Python thread that computes with several gets OpenMP threads of its own. As soon as a
    process has more of them than the machine has cores, GNU's OpenMP lets all of them sleep between
    operations, those of the training too, whatever OMP_WAIT_POLICY says (gomp_managed_threads in
    its source).
    """
    # The first call in a thread takes over the number of the process. Only after it does the thread
    # keep its own.
    torch.get_num_threads()
    torch.set_num_threads(1)


def _read(path: Path) -> int | None:
    # An unreadable file counts as none: training then takes the present number.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(path.read_bytes())["threads"])
    return None
