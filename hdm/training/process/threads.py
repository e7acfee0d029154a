"""CPU threads of a training: it keeps the number that it began with, since sums are rounded by it.

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


def _read(path: Path) -> int | None:
    # An unreadable file counts as none: training then takes the present number.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(path.read_bytes())["threads"])
    return None
